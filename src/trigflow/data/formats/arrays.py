"""Data of the user's own, from a NumPy file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trigflow.data.cache import is_large, mapped
from trigflow.data.codecs import VectorCodec
from trigflow.data.collection import Collection, of_pixels
from trigflow.data.dataset import Dataset
from trigflow.data.formats.damage import damage_told
from trigflow.data.labels import Labels, label_key, labels_of, names_labels, no_labels
from trigflow.system.errors import UserError, did_you_mean
from trigflow.system.files import is_bomb

# What numpy and zipfile raise for files that are damaged, foreign, or claim to hold more than there is.
_DAMAGE = (
    *(ValueError, EOFError, LookupError, TypeError, SyntaxError, ArithmeticError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, tokenize.TokenError, zlib.error, struct.error),
)

_CHANNELS = (1, 3, 4)  # of images

FORMATS = "images (N, C, H, W) uint8, grey images (N, H, W) uint8, or vectors (N, D) float"


def arrays(
    path: str, key: str = "", label_key: str | None = "", sigma_data: float = 0.5
) -> Dataset | Collection:
    """Images or vectors from a .npy or .npz file; images in a .npy file above 256 MiB stay in it, mapped.

    Args:
        path: of the file.
        key: of the data in an .npz file (default: the only array that does not hold the labels).
        label_key: of the labels (N,) in an .npz file, integers from 0 or texts (default: the one that is named so, see
            `labels.NAMES`, if there is one; null: no labels).
        sigma_data: standard deviation of x_0.

    Raises:
        UserError: no such file or array, another format, an empty array, numbers that are not finite.
    """
    data, labels = _contents(Path(path), key, label_key)
    if data.dtype == np.uint8:
        in_file, pixels = isinstance(data, np.memmap), torch.from_numpy(data)
        return of_pixels(Path(path).stem, path, pixels, labels, in_file)
    tensor = torch.from_numpy(_finite(path, data))
    try:
        codec = VectorCodec.measure(tensor, sigma_data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return Dataset(
        Path(path).stem,
        tensor,
        labels.values,
        labels.num_classes,
        codec,
        classes=labels.classes,
        labels_from=labels.origin,
    )


def _contents(path: Path, key: str, given: str | None) -> tuple[np.ndarray, Labels]:
    """Images (N, C, H, W) uint8 or vectors (N, D); their labels."""
    data, labels = _read(path, key, given)
    if not data.dtype.isnative:  # of a machine with the other order of bytes; torch takes its own only
        data = data.astype(data.dtype.newbyteorder("="))
    if data.dtype == np.uint8 and data.ndim == 3:
        data = data[:, None]
    if not ((data.dtype == np.uint8 and data.ndim == 4) or (data.dtype.kind == "f" and data.ndim == 2)):
        raise UserError(f"{path} holds {data.dtype} of shape {data.shape}; wanted are {FORMATS}")
    if data.size == 0:
        raise UserError(f"{path} is empty: its array has the shape {data.shape}")
    if data.ndim == 4 and data.shape[3] in _CHANNELS and data.shape[1] not in _CHANNELS:
        raise UserError(
            f"{path} holds images of shape {data.shape}, channels last; wanted is (N, C, H, W): save "
            "numpy.moveaxis(images, -1, 1)"
        )
    return data, labels if isinstance(labels, Labels) else _checked_labels(path, len(data), *labels)


def _finite(path: str, data: np.ndarray) -> np.ndarray:
    """Vectors as float32."""
    with np.errstate(all="ignore"):
        data = data.astype(np.float32)
    if not np.isfinite(data).all():
        raise UserError(f"{path} holds numbers that are not finite (NaN or infinity), or not so in float32")
    return data


def _checked_labels(path: Path, count: int, name: str, labels: np.ndarray) -> Labels:
    """Those of an array (N,)."""
    origin = f"array {name}"
    if labels.dtype.kind not in "iuUS" or labels.ndim != 1:
        raise UserError(
            f"{path}: labels must be integers or texts of shape (N,), not {labels.dtype} of shape {labels.shape} "
            f"({origin})"
        )
    if len(labels) != count:
        raise UserError(f"{path}: {count} samples, but labels of shape {labels.shape} ({origin})")
    values = labels.tolist()
    if labels.dtype.kind == "S":
        values = [value.decode(errors="replace") for value in values]
    return labels_of(path, values, origin)


Found = Labels | tuple[str, np.ndarray]  # no labels, or the name of their array and that


def _read(path: Path, key: str, given: str | None) -> tuple[np.ndarray, Found]:
    """The data and the labels."""
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    complaint = f"{path} is no NumPy file (.npy or .npz of plain numbers): it is damaged or foreign"
    with damage_told(path, complaint, _DAMAGE), path.open("rb") as file:
        if path.suffix == ".npy" and is_large(path.stat().st_size):
            loaded: Any = mapped(path)
        else:
            loaded = np.load(file, allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            return _members(path, loaded, key, given)
        if named := key or given:
            raise UserError(f"{path} is one array, without names: leave '{named}' out, or give an .npz file")
        return loaded, Labels(origin="the file is one array")


def _members(
    path: Path, archive: np.lib.npyio.NpzFile, key: str, given: str | None
) -> tuple[np.ndarray, Found]:
    """Two arrays of an .npz file; the others are not read."""
    for member in archive.zip.infolist() if archive.zip else ():
        if is_bomb(member.file_size, member.compress_size):
            raise UserError(
                f"{path}: {member.compress_size} bytes of {member.filename} claim to hold {member.file_size}: "
                "it is damaged or foreign"
            )
    others = [name for name in archive.files if name != key]  # whatever its name, it is the data
    of_labels = label_key(path, given, others)
    key = _key(
        path,
        [name for name in archive.files if name != of_labels and (name == key or not names_labels(name))],
        key,
    )
    data = archive[key]
    labels = archive[of_labels] if of_labels else None
    if not isinstance(data, np.ndarray) or not isinstance(labels, np.ndarray | None):
        raise ValueError("a member is no array")
    return data, no_labels(given, "arrays are", archive.files) if labels is None else (of_labels, labels)


def _key(path: Path, names: list[str], key: str) -> str:
    """The name of the data."""
    if not names:
        raise UserError(f"{path} holds no arrays besides labels: give images or vectors")
    if not key and len(names) == 1:
        return names[0]
    if key not in names:
        what = f"no array '{key}'{did_you_mean(key, names)}" if key else "several arrays"
        raise UserError(f"{path} has {what}; choose one by data.key=NAME: {', '.join(names)}")
    return key
