"""The inputs and outputs of an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.system.errors import UserError

Nets = Mapping[str, TrigFlowPrecond]


@dataclass(frozen=True)
class Batch:
    """The training data for one evaluation of the loss.

    Args:
        x_0: clean data with standard deviation sigma_data, (B, ...).
        cond: conditions of each sample, each (B, ...); the objective passes them to the networks unchanged.
        step_images: images in one optimiser step (more than B with gradient accumulation); 0 means B.
    """

    x_0: Tensor
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    step_images: int = 0


@dataclass(frozen=True)
class LossOutput:
    """The result of an objective.

    Args:
        losses: a scalar with its graph for each network that the objective trains.
        logs: detached values, one for each sample of the batch (B,): always "t" and "loss".
    """

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]


class Objective(Protocol):
    """A small frozen object whose fields are its hyper-parameters; it owns no network, optimiser or device.

    With a field target_halflife above 0, nets hold "target": an EMA of the first trained network with this half-life,
    in images.
    """

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the networks that have a loss."""

    @property
    def needs_teacher(self) -> bool:
        """Whether nets must hold "teacher"."""

    @property
    def is_consistency(self) -> bool:
        """Whether it trains a consistency model rather than a diffusion model."""

    @property
    def forwards_per_image(self) -> float:
        """The training cost per image, in forward passes of the network; a teacher is assumed to be as large.

        Matrix products and convolutions are counted: a forward pass is 1, the backward pass 2 (gradients of inputs and
        of weights), the tangent of a forward pass 1.
        """

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        """The loss of each trained network.

        Args:
            nets: networks by name.
            batch: training data.
            nimg: progress of the training, in images seen before this step.
            random: random numbers for t, z and dropout, a function of (seed, number of the image).

        Raises:
            UserError: the random numbers or the conditions are for another number of images than the batch has.
        """


def check_batch(batch: Batch, random: SampleRandom) -> None:
    """Checks that random numbers and conditions have the batch size: a single one would be broadcast silently.

    Raises:
        UserError: random.index or a condition has another first dimension than x_0.
    """
    count = len(batch.x_0)
    if random.index.shape != (count,):
        raise UserError(
            f"random.index has the shape {tuple(random.index.shape)}, and the batch has {count} images: give an index "
            f"of the shape ({count},), the number of each image in the run"
        )
    for name, values in batch.cond.items():
        if values.shape[:1] != (count,):
            raise UserError(
                f"the condition '{name}' has the shape {tuple(values.shape)}, and the batch has {count} images: give "
                "one for each"
            )


def target_halflife(objective: Objective) -> int:
    """The half-life of the objective's target network, in images; 0: it has no target network."""
    return int(getattr(objective, "target_halflife", 0))


def guidance_scale(objective: Objective | None) -> float | tuple[float, float]:
    """The guidance scale of the objective's teacher, a number or a range; 1 (no guidance) without a teacher."""
    scale: float | tuple[float, float] = getattr(objective, "guidance_scale", 1.0)
    return scale
