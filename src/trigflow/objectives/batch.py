"""The inputs and outputs of an objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, StrictInt
from torch import Tensor

from trigflow.core.guidance import GuidanceScale
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.system.config import validate
from trigflow.system.distributed import is_resource_error
from trigflow.system.errors import UserError, errors_reported

Nets = Mapping[str, TrigFlowPrecond]


@dataclass(frozen=True)
class Batch:
    """The training data for one evaluation of the loss.

    Args:
        x_0: clean data with standard deviation sigma_data, (B, ...).
        cond: conditions of each sample, each (B, ...); the objective passes them to the networks unchanged.
        step_images: images in one optimiser step (more than B with gradient accumulation); 0 means B.
        due: names of the networks that this step updates; the losses of the others need not be computed. None: all.
    """

    x_0: Tensor
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    step_images: int = 0
    due: frozenset[str] | None = None

    def updates(self, name: str) -> bool:
        """Whether this step updates the network of this name."""
        return self.due is None or name in self.due


@dataclass(frozen=True)
class LossOutput:
    """The result of an objective.

    Args:
        losses: a scalar with its graph for each network that the step updates; others are not differentiated.
        logs: detached values, one for each sample of the batch (B,): always "t", and "loss" of the first network that
            the objective trains if the step updates it. That of another network is logged as "loss_NAME".
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
        def initial_weights(self) -> Mapping[str, str]:
            """Where networks start that do not start as the recipe's `init` says, by name: {"fake": "teacher"}."""

        @property
        def needs_teacher(self) -> bool:
            """Whether nets must hold "teacher"."""

        @property
        def forwards_per_image(self) -> float:
            """The training cost per image of a step that updates all networks, in forward passes of the network.

            A teacher is assumed to be as large.

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
        initial_weights: Mapping[str, str] = {}
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

    def forwards_of(self, due: frozenset[str]) -> float:
        """`forwards_per_image` of a step that updates these networks only."""
        return self.forwards_per_image

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


def _names(trains: object) -> object:
    names = trains if isinstance(trains, tuple) and all(isinstance(name, str) for name in trains) else ()
    if not names or len(set(names)) < len(names) or not {"target", "teacher", "guide"}.isdisjoint(names):
        raise ValueError(
            'a tuple of distinct names, such as ("net",), other than "target", "teacher" and "guide"'
        )
    return trains


def _no_list(scale: object) -> object:
    if isinstance(scale, list):
        raise ValueError("a number, or a range as a tuple (low, high)")
    return scale


# What an objective declares.
_DECLARED: dict[str, Any] = {
    "is_consistency": StrictBool,
    "trains": Annotated[object, BeforeValidator(_names)],
    "initial_weights": Mapping[str, str],
    "needs_teacher": StrictBool,
    "forwards_per_image": Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)],
    "target_halflife": Annotated[StrictInt, Field(ge=0)],
    "guidance_scale": Annotated[GuidanceScale, BeforeValidator(_no_list)],
    "couples_images": StrictBool,
    "compile": StrictBool,
}


def check_objective(objective: object, name: str) -> Objective:
    """The objective, if it is one.

    Raises:
        UserError: it is no Objective, does not say what kind of model it trains, or declares what cannot be.
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
    for attribute, kind in _DECLARED.items():
        validate(kind, getattr(objective, attribute), f"objective '{name}': {attribute}")
    for net in objective.initial_weights:
        if net not in objective.trains:
            raise UserError(
                f"objective '{name}': initial_weights of '{net}': it trains {', '.join(objective.trains)} only"
            )
    return objective


def objective_errors_reported(name: str, kind: type[UserError] = UserError) -> AbstractContextManager[None]:
    """Reports in one line what a user-defined objective of this name raises when it is called or differentiated."""
    return errors_reported("objective", name, "fails", kind, spared=is_resource_error)


def losses_of(
    objective: Objective,
    name: str,
    nets: Nets,
    batch: Batch,
    nimg: int,
    random: SampleRandom,
    kind: type[UserError] = UserError,
) -> LossOutput:
    """The checked result of an objective, which may be the user's own.

    Args:
        objective, name: the objective and its name in the recipe.
        nets, batch, nimg, random: what it is called with.
        kind: of the error where the user's code raises one.

    Raises:
        UserError: the user's code raises an error, or returns something else than the losses of what it trains.
    """
    with objective_errors_reported(name, kind):
        output = objective(nets, batch, nimg, random)
    check_output(output, name, objective.trains, batch)
    return output


def check_output(output: object, name: str, trains: tuple[str, ...], batch: Batch) -> None:
    """Checks the result of an objective; nothing is read from the device.

    Args:
        output: the result.
        name: of the objective in the recipe.
        trains: names of the networks that it trains.
        batch: what it was called with.

    Raises:
        UserError: it is no LossOutput, the losses are not one scalar with a graph for each network that is updated, or
            the logs have no "t", or no "loss" where the first is updated, of each image.
    """
    where = f"objective '{name}'"
    if not isinstance(output, LossOutput):
        raise UserError(f"{where} returns {_in_words(output)}: return a trigflow.objectives.LossOutput")
    for what, values in (("losses", output.losses), ("logs", output.logs)):
        if not isinstance(values, Mapping):
            raise UserError(f"{where} returns {what} that are {_in_words(values)}: give a dict by name")
    due = {one for one in trains if batch.updates(one)}
    if not due <= output.losses.keys() <= set(trains):
        raise UserError(
            f"{where} returns losses of {', '.join(map(str, output.losses)) or 'no network'}: give one for each that "
            f"it trains: {', '.join(trains)}"
        )
    for net, loss in output.losses.items():
        if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
            raise UserError(
                f"{where} returns {_in_words(loss)} as the loss of '{net}': give a scalar tensor with its graph"
            )
    count = len(batch.x_0)
    for key in ("t", "loss") if trains[0] in due else ("t",):
        log = output.logs.get(key)
        if not isinstance(log, Tensor) or log.shape != (count,):
            found = _in_words(log) if key in output.logs else "nothing"
            raise UserError(f"{where} logs {found} as '{key}': give one value for each image, ({count},)")


def _in_words(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor {tuple(value.shape)} {'with' if value.requires_grad else 'without'} a graph"


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
