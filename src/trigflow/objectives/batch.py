"""The inputs and outputs of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

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


class Objective(ABC):
    """The base of all objectives: a small frozen object whose fields are its hyper-parameters.

    It owns no network, optimiser or device. A subclass, usually a frozen dataclass, states `is_consistency`, computes
    the losses, and overrides what differs of the rest, by a field, a class attribute or a property.
    """

    # To a type checker they are read-only, so that a subclass may have a field or a property in their place. They are
    # no properties, which would take precedence over a field without a default.
    if TYPE_CHECKING:

        @property
        def is_consistency(self) -> bool:
            """Whether it trains a consistency model rather than a diffusion model."""

        @property
        def trains(self) -> tuple[str, ...]:
            """Names of the networks that have a loss; the first is saved as the model."""

        @property
        def needs_teacher(self) -> bool:
            """Whether nets must hold "teacher"."""

        @property
        def forwards_per_image(self) -> float:
            """The training cost per image, in forward passes of the network; a teacher is assumed to be as large.

            Matrix products and convolutions are counted: a forward pass is 1, the backward pass 2 (gradients of inputs
            and of weights), the tangent of a forward pass 1.
            """

        @property
        def target_halflife(self) -> int:
            """Above 0, nets hold "target": an EMA of the first trained network with this half-life, in images."""

        @property
        def guidance_scale(self) -> float | tuple[float, float]:
            """The guidance scale of the teacher, a number or a range (low, high); 1 is no guidance."""

        @property
        def couples_images(self) -> bool:
            """Whether the loss of an image depends on the other images of its microbatch."""

        @property
        def compile(self) -> bool:
            """Whether it runs networks through torch.compile, which decides what a backward pass recomputes."""

    else:
        trains = ("net",)
        needs_teacher = False
        forwards_per_image = 3.0
        target_halflife = 0
        guidance_scale = 1.0
        couples_images = False
        compile = False

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """(low, high) of the guidance scale that the network takes as an input; None: it has no such input."""
        return self.guidance_scale if isinstance(self.guidance_scale, tuple) else None

    @property
    def kind(self) -> Literal["teacher", "student"]:
        """The kind of model that it trains: a consistency model is a student, a diffusion model a teacher."""
        return "student" if self.is_consistency else "teacher"

    @abstractmethod
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


def check_objective(objective: object, name: str) -> Objective:
    """The objective, if it is one.

    Raises:
        UserError: it is no Objective, or does not say what kind of model it trains.
    """
    if not isinstance(objective, Objective):
        raise UserError(
            f"objective '{name}' is no trigflow.objectives.Objective: make its class a subclass of that, which has "
            "defaults of all optional parts"
        )
    if not hasattr(objective, "is_consistency"):
        raise UserError(
            f"objective '{name}' has no is_consistency: say whether it trains a consistency model (True) or a "
            "diffusion model (False)"
        )
    return objective


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
