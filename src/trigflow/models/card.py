"""The card of a model: all that is needed to sample from it, and where it comes from."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from trigflow.data.codecs import codec_from_json, codec_to_json
from trigflow.recipes.schema import PrecondConfig, Recipe, SamplingConfig
from trigflow.system.config import STRICT_KEYS, Component
from trigflow.system.errors import UserError


def _checked_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """Checks the types of the recipe's fields that other code reads; the recipe may be of any version."""
    for key, kind, what in (
        ("train", dict, "a dictionary"),
        ("teacher", str, "a text"),
        ("guide", str, "a text"),
    ):
        if not isinstance(recipe.get(key, kind()), kind | None):
            raise ValueError(f"one whose '{key}' is {what}")
    return recipe


Images = Annotated[int, Field(ge=0)]


RecipeJson = Annotated[dict[str, Any], AfterValidator(_checked_recipe)]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class TrainingPhase:
    """A training phase of the weights: one recipe, trained for a number of images.

    Args:
        name: name of the recipe.
        nimg: number of training images.
        recipe: the whole recipe as JSON.
    """

    name: str
    nimg: Images
    recipe: RecipeJson


Kind = Literal["teacher", "student"]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class ModelCard:
    """All that is needed to sample from a model, and where it comes from; stored as model.json.

    Args:
        name: name of the recipe that the model was trained with.
        network: name and options of the network.
        precond: its preconditioning.
        data_shape: shape of one sample, without the batch.
        num_classes: number of classes, 0 without labels.
        codec: codec of the data (`codecs.codec_to_json`).
        data: name of the data set.
        objective: the training objective.
        sampling: the default sampling settings.
        nimg: number of training images.
        ema: name of the EMA of the weights.
        recipe: the whole recipe as JSON.
        guidance_range: (low, high) of the guidance scales in training, for a student that takes the scale as an input;
            null for other models.
        earlier: the weights' earlier training phases, oldest first, where the run was initialised from another model of
            its kind (`init`): a student from a student, a teacher from a teacher.
        kind: "student" for a consistency model, which predicts x_0 in one evaluation; "teacher" for a diffusion model,
            whose PF-ODE is solved. In cards of older versions, which lack it, it follows from the sampler.
        classes: names of the classes, () where the data has none; cards of older versions lack it.
        unseen: classes that no training sample had, which are not sampled unless asked for.
    """

    name: str
    network: Component
    precond: PrecondConfig
    data_shape: tuple[Annotated[int, Field(ge=1)], ...]
    num_classes: Annotated[int, Field(ge=0, le=10**9)]
    codec: dict[str, Any]
    data: str
    objective: str
    sampling: SamplingConfig
    nimg: Images = 0
    ema: str = ""
    recipe: RecipeJson = field(default_factory=dict)
    guidance_range: tuple[float, float] | None = None
    earlier: tuple[TrainingPhase, ...] = ()
    kind: Kind | None = None
    classes: tuple[str, ...] = ()
    unseen: tuple[Annotated[int, Field(ge=0)], ...] = ()

    def __post_init__(self) -> None:
        if self.kind is None:
            kind = "student" if self.sampling.sampler == "consistency" else "teacher"
            object.__setattr__(self, "kind", kind)
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"as many names of classes as classes, {self.num_classes}")
        if self.unseen and not (max(self.unseen) < self.num_classes > len(set(self.unseen))):
            raise ValueError(f"unseen classes below {self.num_classes}, and not all of them")

    @property
    def phases(self) -> tuple[TrainingPhase, ...]:
        """All training phases of the weights, this one last."""
        return (*self.earlier, TrainingPhase(name=self.name, nimg=self.nimg, recipe=self.recipe))

    @property
    def label_dropout(self) -> float | None:
        """The share of labels that were dropped in training; None if the card has no recipe."""
        return (self.recipe.get("train") or {}).get("label_dropout")


def card_of(
    recipe: Recipe,
    data_shape: tuple[int, ...],
    num_classes: int,
    kind: Kind,
    guidance_range: tuple[float, float] | None = None,
) -> ModelCard:
    """The card of a recipe's model, as far as the recipe determines it: only the name of the data, and no codec.

    Args:
        recipe: recipe of the training.
        data_shape, num_classes: shape of one sample and number of classes of the data.
        kind, guidance_range: kind of model that the objective trains, and its range of guidance scales.
    """
    return ModelCard(
        name=recipe.name,
        network=recipe.network,
        precond=recipe.precond,
        data_shape=data_shape,
        num_classes=num_classes,
        codec={"name": "identity"},
        data=recipe.data.name,
        objective=recipe.objective.name,
        sampling=recipe.sampling,
        guidance_range=guidance_range,
        kind=kind,
    )


def check_guide(name: str, guide: ModelCard, guided: ModelCard) -> None:
    """Whether one model can guide another: both velocities must be of the same x_t, under the same labels.

    Args:
        name: what the guide was loaded by.
        guide, guided: cards of the two.

    Raises:
        UserError: the guide is a consistency model, or belongs to other data.
    """
    if guide.kind == "student":
        raise UserError(f"the guide '{name}' is a consistency model: give a diffusion model")
    pairs = {
        "data shape": (guide.data_shape, guided.data_shape),
        "number of classes": (guide.num_classes, guided.num_classes),
        "sigma_data": (guide.precond.sigma_data, guided.precond.sigma_data),
        "codec": (_written_codec(guide), _written_codec(guided)),
    }
    for what, (theirs, ours) in pairs.items():
        if theirs != ours:
            raise UserError(
                f"the guide '{name}' does not fit '{guided.name}': its {what} is {theirs}, not {ours}"
            )


def _written_codec(card: ModelCard) -> dict[str, Any]:
    """Of a card of any version, as this one writes it."""
    return codec_to_json(codec_from_json(card.codec))
