"""A plan of a training: whether it fits, in which microbatches, and how long it takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.tools.plan.dry_run import Footprint, dry_run_step
from trigflow.tools.plan.memory import Layout, Need, need
from trigflow.tools.plan.shapes import sample_shape

GIB = 2**30
# The rest is left to the driver, workspaces of libraries and fragmentation.
USABLE = 0.9


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Identical GPUs.

    Args:
        gpus: their number.
        memory: of each GPU, in GiB.
        throughput: sustained by each GPU in training, in TFLOP/s. The default is a guess for an A100 or H100 in
            bfloat16: a half and a seventh of their peak.
    """

    gpus: int = 8
    memory: float = 80.0
    throughput: float = 150.0

    @property
    def usable(self) -> float:
        """Bytes on each GPU that are available to tensors."""
        return USABLE * self.memory * GIB


@dataclass(frozen=True)
class Choice:
    """The training in one layout.

    Args:
        layout: over the GPUs.
        microbatch: images per pass on one GPU.
        passes: per optimiser step.
        need: memory on one GPU.
        fits: whether `need` is within the usable memory.
        largest: the largest microbatch that fits; 0 where none does.
    """

    layout: Layout
    microbatch: int
    passes: int
    need: Need
    fits: bool
    largest: int


@dataclass(frozen=True)
class TrainingPlan:
    """The plan of a training.

    Args:
        recipe: of the training.
        machine: its GPUs.
        data_shape: of one sample, (C, *size).
        num_classes: of the data; 0 without labels.
        checkpointing: whether blocks are recomputed in the backward pass.
        footprint: memory and FLOPs.
        choices: one for each layout.
    """

    recipe: Recipe
    machine: Machine
    data_shape: tuple[int, ...]
    num_classes: int
    checkpointing: bool
    footprint: Footprint
    choices: tuple[Choice, ...]

    @property
    def total_flops(self) -> float:
        """Of the whole training."""
        return self.recipe.train.total_nimg * self.footprint.training_flops

    @property
    def seconds(self) -> float:
        """Duration of the whole training at the machine's throughput."""
        return self.total_flops / (self.machine.gpus * self.machine.throughput * 1e12)

    def gpus_needed(self) -> int | None:
        """The fewest GPUs of this size on which it fits, sharded and in microbatches of one image; None: on none."""
        batch = self.recipe.train.batch
        for gpus in divisors(batch):
            layout = Layout("FSDP", gpus, sharded=gpus > 1)
            if need(self.footprint, layout, 1, batch // gpus).total <= self.machine.usable:
                return gpus
        return None

    def to_json(self) -> dict[str, Any]:
        """All numbers, in bytes, FLOPs and seconds."""
        footprint = {key: value for key, value in vars(self.footprint).items() if key != "timelines"}
        choices = [asdict(one) | {"total": one.need.total} for one in self.choices]
        return {
            "recipe": self.recipe.name,
            "machine": asdict(self.machine) | {"usable": int(self.machine.usable)},
            "data_shape": self.data_shape,
            "num_classes": self.num_classes,
            "precision": self.recipe.train.precision,
            "checkpointing": self.checkpointing,
            "batch": self.recipe.train.batch,
            "total_nimg": self.recipe.train.total_nimg,
            **footprint,
            "total_flops": self.total_flops,
            "seconds": self.seconds,
            "layouts": choices,
        }


def make_plan(
    recipe: Recipe, machine: Machine, microbatch: int | None = None, checkpointing: bool = False
) -> TrainingPlan:
    """Plans a training: on one GPU, or with DDP and with FSDP on several.

    Args:
        recipe: of the training.
        machine: its GPUs.
        microbatch: images per pass on one GPU; None: the recipe's, else the largest that fits.
        checkpointing: plan with activation checkpointing of the network's blocks.

    Raises:
        UserError: a batch that the GPUs or the microbatch do not divide, or a mistake in the recipe.
    """
    batch, gpus = recipe.train.batch, machine.gpus
    if batch % gpus:
        raise UserError(
            f"--gpus {gpus} does not divide the batch of {batch} images: change it or train.batch"
        )
    share, wanted = batch // gpus, microbatch or recipe.train.microbatch
    if wanted and share % wanted:
        raise UserError(
            f"a microbatch of {wanted} does not divide the {share} images of a step on each of {gpus} GPUs: "
            "change --microbatch, --gpus or train.batch"
        )
    data_shape, num_classes = sample_shape(recipe)
    footprint = dry_run_step(recipe, data_shape, num_classes, checkpointing)
    layouts = (
        (Layout("DDP", gpus), Layout("FSDP", gpus, sharded=True)) if gpus > 1 else (Layout("one GPU", 1),)
    )
    choices = tuple(_choice(footprint, layout, share, wanted, machine.usable) for layout in layouts)
    return TrainingPlan(recipe, machine, data_shape, num_classes, checkpointing, footprint, choices)


def _choice(footprint: Footprint, layout: Layout, share: int, wanted: int | None, usable: float) -> Choice:
    def needed(microbatch: int) -> Need:
        return need(footprint, layout, microbatch, share // microbatch)

    largest = next((one for one in reversed(divisors(share)) if needed(one).total <= usable), 0)
    microbatch = wanted or largest or 1
    found = needed(microbatch)
    return Choice(layout, microbatch, share // microbatch, found, found.total <= usable, largest)


def divisors(number: int) -> list[int]:
    """All divisors, in ascending order."""
    small = [one for one in range(1, int(number**0.5) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)})
