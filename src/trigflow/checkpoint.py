"""Files that survive: the state of a run for going on with it, and a model for sampling."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import nn

from trigflow.core.precond import TrigFlowPrecond
from trigflow.data.codecs import check_codec, codec_from_json
from trigflow.networks import NETWORKS
from trigflow.recipe import PrecondConfig, Recipe, SamplingConfig
from trigflow.system.config import STRICT_KEYS, Component, build, check_trusted, to_json, validate
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, read_json, write_json
from trigflow.system.tensors import Tensors, load_tensors, read_state, write_state

# State of a run: safetensors with the rest as JSON in the header, and a digest of both


# Loading weights into networks


# Models


def _checked_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """What others read in the recipe of a card, which may be of any version, has the kind that they expect."""
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
class Stretch:
    """A training that weights went through before the one of their card.

    Args:
        name: of its recipe.
        nimg: images it saw.
        recipe: the whole recipe as JSON.
    """

    name: str
    nimg: Images
    recipe: RecipeJson


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class ModelCard:
    """All that is needed to sample from a model, and where it comes from; stored as model.json.

    Args:
        name: of the recipe that made it.
        network: name and options.
        precond: preconditioning.
        data_shape: shape of one sample, without the batch.
        num_classes: 0 where it takes no labels.
        codec: of the data (`codecs.codec_to_json`).
        data: name of the data set.
        objective: that it was trained with.
        sampling: how it is sampled by default.
        nimg: images it was trained on.
        ema: name of the average of the weights.
        recipe: the whole recipe as JSON.
        guidance_range: (low, high) of the guidance scales that a student was trained with which takes the scale as an
            input; null for a model that takes none.
        earlier: trainings that the weights had been through, the oldest first, where the run went on with another model
            of its kind (`init`): a student with a student, a teacher with a teacher.
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
    earlier: tuple[Stretch, ...] = ()

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """All trainings of the weights, this one the last."""
        return (*self.earlier, Stretch(name=self.name, nimg=self.nimg, recipe=self.recipe))

    @property
    def label_dropout(self) -> float | None:
        """Share of labels that were dropped in training; None where the recipe is not told."""
        return (self.recipe.get("train") or {}).get("label_dropout")


def card_of(
    recipe: Recipe, data_shape: tuple[int, ...], num_classes: int, guidance_range: tuple[float, float] | None
) -> ModelCard:
    """Of the model that a recipe makes, as far as the recipe tells: of its data only the name, and no codec.

    Args:
        recipe: of the training.
        data_shape, num_classes: of the data.
        guidance_range: of its objective.
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
    )


def new_precond(card: ModelCard, blank: bool = False) -> TrigFlowPrecond:
    """The network of a card with fresh weights, in its preconditioning; blank: with shapes alone (on "meta").

    Raises:
        UserError: unknown network, or options that do not fit it.
    """
    with torch.device("meta") if blank else nullcontext():
        network = build(
            card.network, NETWORKS, "network", data_shape=card.data_shape, num_classes=card.num_classes
        )
        return TrigFlowPrecond(network, sigma_data=card.precond.sigma_data, c_noise=card.precond.c_noise)


def save_model(folder: Path, weights: TrigFlowPrecond | Tensors, card: ModelCard) -> None:
    """Writes model.safetensors, which knows its own digest, and model.json (last: where it lies, the weights do, too).

    Args:
        folder: exists.
        weights: a preconditioned network, or its tensors by name.
        card: description.

    Raises:
        UserError: no space, no permission.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    write_state(folder / "model.safetensors", tensors, {})
    write_json(folder / "model.json", to_json(card))


def read_card(folder: Path) -> ModelCard:
    """The description of the model of a folder.

    Raises:
        UserError: there is no model, or its description is damaged.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no model (no model.json)")
    card = validate(ModelCard, read_json(path), str(path))
    where = f"{path}.codec"
    check_codec(codec_from_json(card.codec, where), card.data_shape, card.precond.sigma_data, where)
    return card


def load_model(
    folder: Path, trust_code: bool = False, trusted: str | None = None, blank: bool = False
) -> tuple[TrigFlowPrecond, ModelCard]:
    """The model of a folder, on the CPU, in evaluation mode, its weights frozen.

    Args:
        folder: with model.json and model.safetensors.
        trust_code: import whatever network "package.module:Class" its card names.
        trusted: a network that the user has named, which may be imported in any case.
        blank: leave the weights out: its tensors have shapes, and no numbers (they are on the device "meta").

    Raises:
        UserError: there is no model, it is damaged, its weights do not fit its network, or its network is code that
            the user has not named.
    """
    card, weights_path = read_card(folder), folder / "model.safetensors"
    if not trust_code and card.network.name != trusted:
        check_trusted(card.network, "network", folder)
    try:
        precond = new_precond(card, blank)
    except UserError as error:
        raise UserError(f"{folder / 'model.json'}: {error}") from None
    if blank:
        return precond.eval().requires_grad_(False), card
    try:
        tensors, _ = read_state(weights_path, own=False)
    except DamagedFile as damage:
        raise UserError(f"{weights_path} is damaged: {damage}") from None
    load_tensors(precond, tensors, str(weights_path))
    return precond.eval().requires_grad_(False), card
