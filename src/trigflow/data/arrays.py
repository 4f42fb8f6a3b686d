"""Data of the user's own, from a NumPy file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch

from trigflow.codecs import Codec, ImageCodec, VectorCodec
from trigflow.data.cache import is_large, mapped
from trigflow.data.dataset import Dataset
from trigflow.errors import UserError, did_you_mean

# What numpy and zipfile raise for files that are damaged, foreign, or claim to hold more than there is.
_DAMAGE = (
    *(ValueError, EOFError, LookupError, TypeError, SyntaxError, ArithmeticError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, tokenize.TokenError, zlib.error, struct.error),
)

FORMATS = "images (N, C, H, W) uint8, grey images (N, H, W) uint8, or vectors (N, D) float"


def arrays(path: str, key: str = "", label_key: str = "labels", sigma_data: float = 0.5) -> Dataset:
    """Images or vectors from a .npy or .npz file; images in a .npy file above 256 MiB stay in it, mapped.

    Args:
        path: of the file.
        key: of the data in an .npz file (default: the only array that does not hold the labels).
        label_key: of the labels (N,) in an .npz file, integers from 0; left out where there is none.
        sigma_data: standard deviation of x_0.

    Raises:
        UserError: no such file, another format, an empty array, numbers that are not finite.
    """
    data, labels = _read(Path(path), key, label_key)
    if data.dtype == np.uint8 and data.ndim == 3:
        data = data[:, None]
    if not ((data.dtype == np.uint8 and data.ndim == 4) or (data.dtype.kind == "f" and data.ndim == 2)):
        raise UserError(f"{path} holds {data.dtype} of shape {data.shape}; wanted are {FORMATS}")
    if data.size == 0:
        raise UserError(f"{path} is empty: its array has the shape {data.shape}")
    return _dataset(Path(path), _stored(path, data), labels, sigma_data)


def _stored(path: str, data: np.ndarray) -> np.ndarray:
    """uint8 as it is, other numbers as float32."""
    if data.dtype == np.uint8:
        return data
    with np.errstate(all="ignore"):
        data = data.astype(np.float32)
    if not np.isfinite(data).all():
        raise UserError(f"{path} holds numbers that are not finite (NaN or infinity), or not so in float32")
    return data


def _dataset(path: Path, data: np.ndarray, labels: np.ndarray | None, sigma_data: float) -> Dataset:
    tensor = torch.from_numpy(data)
    codec: Codec = (ImageCodec if data.dtype == np.uint8 else VectorCodec).measure(tensor, sigma_data)
    if labels is None:
        return Dataset(path.stem, tensor, None, 0, codec, mapped=_is_mapped(data))
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(
            f"{path}: labels must be integers of shape (N,), not {labels.dtype} of shape {labels.shape}"
        )
    num_classes = int(labels.max(initial=0)) + 1
    if num_classes > len(data):
        raise UserError(
            f"{path}: the largest label is {num_classes - 1}, but there are {len(data)} samples only: "
            "number the classes 0, 1, 2, ..."
        )
    return Dataset(path.stem, tensor, torch.from_numpy(labels.astype(np.int64)), num_classes, codec)


def _is_mapped(data: np.ndarray) -> bool:
    """Whether an array, or what it is a view of, lies in a file."""
    return isinstance(data, np.memmap)


def _read(path: Path, key: str, label_key: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The data and the labels, if any."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with path.open("rb") as file:
            if path.suffix == ".npy" and is_large(path.stat().st_size):
                return mapped(path), None
            loaded = np.load(file, allow_pickle=False)
            found = loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except _DAMAGE:
        raise _no_numpy_file(path) from None
    if isinstance(found, np.ndarray):
        return found, None
    if not all(isinstance(member, np.ndarray) for member in found.values()):
        raise _no_numpy_file(path)
    return _pick(path, found, key, label_key)


def _no_numpy_file(path: Path) -> UserError:
    return UserError(f"{path} is no NumPy file (.npy or .npz of plain numbers): it is damaged or foreign")


def _pick(
    path: Path, found: dict[str, np.ndarray], key: str, label_key: str
) -> tuple[np.ndarray, np.ndarray | None]:
    labels = found.pop(label_key, None)
    if not key and len(found) == 1:
        key = next(iter(found))
    if key not in found:
        what = f"no array '{key}'{did_you_mean(key, found)}" if key else "several arrays"
        raise UserError(
            f"{path} has {what}; choose one by data.key=NAME: {', '.join(found) or 'it holds none'}"
        )
    return found[key], labels
