"""Tensors and JSON state in one safetensors file with a digest; loading of tensors into modules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from trigflow.system.distributed import all_finite, own_part, sharded_like
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, clear_os_errors, write_atomically

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Tensors = Mapping[str, Tensor]


_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def is_tensor(item: object) -> TypeIs[Tensor]:
    """Whether it is a tensor, or computes as one: a Dual is no subclass of Tensor."""
    return bool(torch.overrides.is_tensor_like(item))  # type: ignore[no-untyped-call]


def tensors_digest(tensors: Tensors, state: str = "") -> str:
    """The SHA-256 of the names, dtypes, shapes and bytes of tensors, and of a text."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {array.dtype} {tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _unshared(tensors: Tensors) -> dict[str, Tensor]:
    """The tensors on the CPU, each in its own storage: safetensors refuses weights that two modules share."""
    seen: set[int] = set()
    stored = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage().data_ptr()
        stored[name] = plain.clone() if storage in seen else plain
        seen.add(storage)
    return stored


def write_state(path: Path, tensors: Tensors, state: Mapping[str, Any]) -> None:
    """Writes tensors and JSON data into one file that contains its digest, atomically."""
    stored = _unshared(tensors)
    text = json.dumps(state)
    # The order of several entries is left to chance: models, which have no state, are to be the same byte for byte.
    metadata = {"state": text} if state else {}
    digest = tensors_digest(stored, text)
    write_atomically(path, safetensors.torch.save(stored, {**metadata, "sha256": digest}))


def read_state(path: Path, own: bool = True) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what write_state wrote.

    Args:
        path: path of the file.
        own: False: also accept safetensors files of other programs, without a state and a digest.

    Raises:
        DamagedFile: the file is truncated, is not of this format, or its digest is wrong.
        UserError: it cannot be read.
    """
    with clear_os_errors("read", path):
        content = path.read_bytes()
    try:
        tensors = safetensors.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        if not own and "sha256" not in metadata:
            return tensors, {}
        text, digest = metadata.get("state", "{}"), metadata["sha256"]
        state = json.loads(text)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedFile(f"it cannot be decoded ({type(error).__name__})") from None
    if tensors_digest(tensors, text) != digest:
        raise DamagedFile("its digest is wrong")
    if not isinstance(state, dict):
        raise DamagedFile("it holds no state")
    return tensors, state


def prefixed(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def below(tensors: Tensors, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names have the prefix, without it: the inverse of `prefixed`."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def load_tensors(module: nn.Module, tensors: Tensors, source: str) -> None:
    """Copies the tensors into the module.

    Args:
        module: parameters and buffers to fill.
        tensors: by name, exactly those of the module's state_dict.
        source: where they come from, for the error.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape or dtype, or not finite; names the first.
    """
    wanted = module.state_dict()
    _check_tensors(wanted, tensors, source, "network")
    module.load_state_dict({name: sharded_like(tensor, wanted[name]) for name, tensor in tensors.items()})


def _check_tensors(wanted: Tensors, tensors: Tensors, source: str, what: str) -> None:
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{source} does not fit the {what}: it has no tensor '{name}'")
        if tensor.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, but the {what}'s is {tuple(tensor.shape)}"
            raise UserError(f"{source} does not fit the {what}: '{name}' has the shape {shapes}")
        check_numbers(name, tensors[name], tensor, source)
    for name in tensors:
        if name not in wanted:
            raise UserError(f"{source} does not fit the {what}: the {what} has no tensor '{name}'")


def check_numbers(name: str, tensor: Tensor, wanted: Tensor, source: str) -> None:
    """Raises a UserError unless the tensor has the wanted kind of dtype and, if floating point, is finite."""
    if tensor.dtype != wanted.dtype and not {tensor.dtype, wanted.dtype} <= _FLOATS:
        types = f"'{name}' holds {tensor.dtype} in place of {wanted.dtype}"
        raise UserError(f"{source} is damaged or foreign: {types}")
    if tensor.dtype in _FLOATS and not all_finite(tensor.to(wanted.dtype)):
        raise UserError(
            f"{source} holds weights that are not finite (in '{name}'): it is damaged, or its training diverged"
        )


def load_average(average: dict[str, Tensor], tensors: Tensors, source: str) -> None:
    """Copies tensors into the tensors of an average, by name.

    Raises:
        UserError: a tensor is missing, superfluous, of another shape or dtype, or not finite; names the first.
    """
    _check_tensors(average, tensors, source, "average")
    for name, tensor in average.items():
        own_part(tensor).copy_(own_part(sharded_like(tensors[name], tensor)))
