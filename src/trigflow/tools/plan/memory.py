"""What lies on one GPU in a layout: the sum of what lasts, what is gathered, and the peak of a step."""

from __future__ import annotations

from dataclasses import dataclass, fields

from trigflow.tools.plan.dry_run import Footprint

# Full sharding holds the weights of two blocks as a whole, of the one that computes and the next, and one's gradients.
GATHERED_BLOCKS = 3


@dataclass(frozen=True)
class Layout:
    """How a training lies on GPUs.

    Args:
        name: for reports.
        gpus: how many there are.
        sharded: weights, gradients, optimiser and averages are shared out among them (FSDP); else each has all (DDP).
    """

    name: str
    gpus: int
    sharded: bool = False


@dataclass(frozen=True)
class Need:
    """Bytes on one GPU at the peak of a step.

    Args:
        weights, teacher, optimizer, averages: what lasts.
        gradients: of the weights, those that are there at the peak.
        gathered: blocks that are brought together (with DDP: copied) as they compute.
        activations: kept for the backward pass.
        transients: tangents, the teacher's pass, gradients of activations, and all else that comes and goes.
    """

    weights: int
    teacher: int
    gradients: int
    optimizer: int
    averages: int
    gathered: int
    activations: int
    transients: int

    @property
    def total(self) -> int:
        return sum(getattr(self, one.name) for one in fields(self))


def need(footprint: Footprint, layout: Layout, microbatch: int, passes: int) -> Need:
    """What one GPU needs.

    Args:
        footprint: of the training.
        layout: over GPUs.
        microbatch: images in one pass on one GPU.
        passes: in one step of the optimiser; from the second on, the gradients are there from the start.
    """
    share = 1 / layout.gpus if layout.sharded else 1.0
    course = footprint.course(microbatch)
    work, gradients = course.peak(share, footprint.gradients if passes > 1 else None)
    activations = min(course.kept, work)
    return Need(
        weights=int(footprint.weights * share),
        teacher=int(footprint.teacher * share),
        gradients=gradients,
        optimizer=int(footprint.optimizer * share),
        averages=int(footprint.averages * share),
        gathered=GATHERED_BLOCKS * footprint.block if layout.gpus > 1 else 0,
        activations=activations,
        transients=work - activations,
    )
