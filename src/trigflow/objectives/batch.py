"""What goes into an objective and what comes out."""

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
    """Training data of one evaluation of the loss.

    Args:
        x_0: clean data with standard deviation sigma_data, (B, ...).
        cond: conditions of each sample, each (B, ...); the objective hands them on without looking inside.
        step_images: images in one step of the optimiser (more than B under gradient accumulation); 0 means B.
    """

    x_0: Tensor
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    step_images: int = 0


@dataclass(frozen=True)
class LossOutput:
    """Result of an objective.

    Args:
        losses: a scalar with its graph for each network that the objective trains.
        logs: detached values, one for each sample of the batch (B,): always "t" and "loss".
    """

    losses: dict[str, Tensor]
    logs: dict[str, Tensor]


class Objective(Protocol):
    """A small frozen object whose fields are its hyper-parameters; it owns no network, optimiser or device.

    With a field target_halflife above 0, nets hold "target": a running average of the first trained network that
    forgets a half in so many images.
    """

    @property
    def trains(self) -> tuple[str, ...]:
        """Names of the networks that have a loss."""

    @property
    def needs_teacher(self) -> bool:
        """Whether nets must hold "teacher"."""

    @property
    def is_consistency(self) -> bool:
        """Whether it trains a consistency model, rather than a diffusion model."""

    @property
    def forwards_per_image(self) -> float:
        """Cost of an image of training in forward passes of the network; a teacher is taken to be as large.

        Counted are matrix products and convolutions: a forward pass is 1, the backward pass 2 (gradients of inputs and
        of weights), the tangent along a forward pass 1.
        """

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        """The loss of each trained network.

        Args:
            nets: networks by name.
            batch: data.
            nimg: progress of the training, in images seen before this step.
            random: source of t, z and dropout, a function of (seed, number of the image).

        Raises:
            UserError: the random numbers, or the conditions, are not of as many images as the batch has.
        """


def check_batch(batch: Batch, random: SampleRandom) -> None:
    """What is of each image must be there for each: one alone would be broadcast, unseen.

    Raises:
        UserError: random.index, or a condition, is not of the images of the batch.
    """
    count = len(batch.x_0)
    if random.index.shape != (count,):
        raise UserError(
            f"random numbers {random.index.numel()} images, and the batch has {count}: give an index of the shape "
            f"({count},), the number of each image in the run"
        )
    for name, values in batch.cond.items():
        if values.shape[:1] != (count,):
            raise UserError(
                f"the condition '{name}' has the shape {tuple(values.shape)}, and the batch has {count} images: give "
                "one for each"
            )


def target_halflife(objective: Objective) -> int:
    """Images in which the objective's target network forgets a half; 0: it has none."""
    return int(getattr(objective, "target_halflife", 0))


def guidance_scale(objective: Objective | None) -> float | tuple[float, float]:
    """At which the objective guides its teacher, a number or a range; 1, none, for one that guides nobody."""
    scale: float | tuple[float, float] = getattr(objective, "guidance_scale", 1.0)
    return scale
