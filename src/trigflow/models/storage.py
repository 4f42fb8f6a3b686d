"""Files that survive: the state of a run for going on with it, and a model for sampling."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from trigflow.core.precond import TrigFlowPrecond
from trigflow.data.codecs import check_codec, codec_from_json
from trigflow.models.card import ModelCard
from trigflow.networks import NETWORKS
from trigflow.system.config import build, check_trusted, to_json, validate
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, read_json, write_json
from trigflow.system.tensors import Tensors, load_tensors, read_state, write_state

# State of a run: safetensors with the rest as JSON in the header, and a digest of both


# Loading weights into networks


# Models


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
