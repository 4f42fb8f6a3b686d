"""Weights that others have published, read from a file of the user's: data only, nothing in the file is executed."""

from __future__ import annotations

import hashlib
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trigflow.system.errors import UserError

Net = TypeVar("Net", bound=nn.Module)

# Counts batches in training; older files lack it, and no feature depends on it.
_UNUSED = "num_batches_tracked"


def read_weights(path: Path, wanted: str) -> dict[str, Tensor]:
    """The tensors of a file by name: safetensors, or what torch.save wrote of a state_dict.

    A state_dict may lie below the key "state_dict", and its names may begin with "module." (DataParallel's).

    Args:
        path: of the file; one that ends in .safetensors is read as such.
        wanted: the file that is right here, for the errors.

    Raises:
        UserError: no such file, a damaged one, one with code in it (a TorchScript archive, a pickle), no state_dict.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}: give {wanted}")
    _check_digest(path)
    if _is_torchscript(path):
        raise UserError(f"{path} is a TorchScript archive, which holds code that is not run: give {wanted}")
    tensors = _unwrapped(_read(path, wanted))
    if not isinstance(tensors, Mapping) or not tensors:
        raise UserError(f"{path} holds no state_dict: give {wanted}")
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in tensors.items()):
        raise UserError(f"{path} holds more than a state_dict's tensors: give {wanted}")
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _check_digest(path: Path) -> None:
    """Names of published files often end in the first digits of their SHA-256, as those that torch.hub downloads."""
    told = re.search(r"-([0-9a-f]{8,64})$", path.stem)
    if told is None:
        return
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:  # told when it is read
        return
    if not found.startswith(told[1]):
        raise UserError(
            f"{path} is damaged: its name says that its SHA-256 begins with {told[1]}, and it does with "
            f"{found[: len(told[1])]}; get it again, or rename it if it is another file"
        )


def filled(build: Callable[[], Net], path: Path, wanted: str, unused: Collection[str] = ()) -> Net:
    """A network with the weights of a file, which is read before the network is built.

    Args:
        build: makes the network.
        path, wanted: as in read_weights.
        unused: names in the file that the network has no use for.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    tensors = read_weights(path, wanted)
    network = build()
    fill(network, {name: value for name, value in tensors.items() if name not in unused}, path, wanted)
    return network


def _is_torchscript(path: Path) -> bool:
    """A TorchScript archive is a zip archive with a table of constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read(path: Path, wanted: str) -> object:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # torch's, of other pickles than its own
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError:
        raise UserError(f"{path} is damaged or holds no safetensors: give {wanted}") from None
    except Exception as error:  # a foreign pickle makes torch raise anything
        kind = type(error).__name__
        raise UserError(
            f"{path} is damaged, or holds code, which is not run ({kind}): give {wanted}"
        ) from None


def _unwrapped(content: object) -> object:
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        return content["state_dict"]
    return content


def fill(network: nn.Module, tensors: Mapping[str, Tensor], path: Path, wanted: str) -> None:
    """Copies the tensors into the network, whose names and shapes they must have.

    Args:
        network: to fill.
        tensors: of `read_weights`.
        path, wanted: as there.

    Raises:
        UserError: naming the first tensor that is missing, superfluous, of another shape, or not finite.
    """
    own = {name: value for name, value in network.state_dict().items() if not name.endswith(_UNUSED)}
    given = {name: value for name, value in tensors.items() if not name.endswith(_UNUSED)}
    for name, tensor in own.items():
        if name not in given:
            raise UserError(f"{path} does not fit: it has no tensor '{name}', give {wanted}")
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)} in place of {tuple(tensor.shape)}"
            raise UserError(f"{path} does not fit: '{name}' has the shape {shapes}, give {wanted}")
        if not given[name].isfinite().all():
            raise UserError(f"{path} is damaged: '{name}' holds numbers that are not finite, give {wanted}")
    for name in given:
        if name not in own:
            raise UserError(f"{path} does not fit: its tensor '{name}' is unknown, give {wanted}")
    network.load_state_dict(given, strict=False)
