"""The files of a model: writing, reading and checking model.safetensors and model.json."""

from __future__ import annotations

from collections.abc import Collection
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


def new_precond(card: ModelCard, blank: bool = False) -> TrigFlowPrecond:
    """The preconditioned network of a card, newly initialised; blank: without values, on the device "meta".

    Raises:
        UserError: the network is unknown, does not take these options, or is no nn.Module with parameters.
    """
    with torch.device("meta") if blank else nullcontext():
        network = build(
            card.network, NETWORKS, "network", data_shape=card.data_shape, num_classes=card.num_classes
        )
        if not isinstance(network, nn.Module):
            raise UserError(
                f"network '{card.network.name}' returns {type(network).__name__}: a torch.nn.Module is needed"
            )
        if not any(True for _ in network.parameters()):
            raise UserError(
                f"network '{card.network.name}' returns {type(network).__name__} without parameters: register what is "
                "trained as nn.Parameter, or as modules"
            )
        return TrigFlowPrecond(network, sigma_data=card.precond.sigma_data, c_noise=card.precond.c_noise)


def save_model(folder: Path, weights: TrigFlowPrecond | Tensors, card: ModelCard) -> None:
    """Writes model.safetensors, which contains its digest, and then model.json, so that a folder with it is complete.

    Args:
        folder: an existing folder.
        weights: a preconditioned network, or its tensors by name.
        card: the model's card.

    Raises:
        UserError: no space, no permission.
    """
    tensors = weights.state_dict() if isinstance(weights, nn.Module) else weights
    write_state(folder / "model.safetensors", tensors, {})
    write_json(folder / "model.json", to_json(card))


def read_card(folder: Path) -> ModelCard:
    """The card of the model in a folder.

    Raises:
        UserError: there is no model, or its card is damaged.
    """
    path = folder / "model.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no model (no model.json)")
    card = validate(ModelCard, read_json(path), str(path))
    where = f"{path}.codec"
    check_codec(codec_from_json(card.codec, where), card.data_shape, card.precond.sigma_data, where)
    return card


def load_model(
    folder: Path, trust_code: bool = False, trusted: Collection[str] = (), blank: bool = False
) -> tuple[TrigFlowPrecond, ModelCard]:
    """The model of a folder, on the CPU, in evaluation mode, with frozen weights.

    Args:
        folder: folder with model.json and model.safetensors.
        trust_code: import the network "package.module:Class" and the sampler that its card names.
        trusted: those that the user has named, which are imported in any case.
        blank: do not load the weights: the tensors have shapes but no values (on the device "meta").

    Raises:
        UserError: there is no model, it is damaged, its weights do not fit its network, or it needs code that
            the user has not named.
    """
    card, weights_path = read_card(folder), folder / "model.safetensors"
    for what, name in (("network", card.network.name), ("sampler", card.sampling.sampler)):
        if not trust_code and name not in trusted:
            check_trusted(name, what, folder)
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
