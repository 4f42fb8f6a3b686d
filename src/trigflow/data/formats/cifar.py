"""CIFAR-10's batches for Python: pickles of arrays, of which nothing is executed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from trigflow.data.collection import Collection, of_pixels
from trigflow.data.labels import Labels
from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors, must_be_regular

MOST_BYTES = 2**28  # of one batch; the real ones have 31 MB
_NAMES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)
_CLASSES = len(_NAMES)
_SHAPE = (3, 32, 32)
_FILES = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}

# All that a pickle may name: what an array is put together from, under its old and its new name.
_ALLOWED = {
    (f"numpy.{core}.multiarray", "_reconstruct"): np.ndarray(0).__reduce__()[0] for core in ("core", "_core")
} | {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}


class _ArraysOnly(pickle._Unpickler):
    """Of Python: that of C makes a list as long as any number that the pickle names (LONG_BINPUT)."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _ALLOWED[module, name]


def cifar10(folder: str, split: Literal["train", "test"] = "train") -> Collection:
    """CIFAR-10 from its folder cifar-10-batches-py: 50,000 (train) or 10,000 (test) images 32x32 RGB, ten classes.

    Args:
        folder: with data_batch_1 .. data_batch_5 and test_batch.
        split: "train" or "test".

    Raises:
        UserError: a file that is missing, damaged or foreign, or that names anything but arrays.
    """
    batches = [_batch(Path(folder) / name) for name in _FILES[split]]
    pixels = torch.from_numpy(np.concatenate([images for images, _ in batches]))
    labels = torch.from_numpy(np.concatenate([labels for _, labels in batches]))
    return of_pixels("cifar10", folder, pixels, Labels(labels, _CLASSES, _NAMES, "its batches"))


def has_test_part(folder: Path) -> bool:
    """Whether the folder holds the 10,000 images for testing."""
    return all((folder / name).is_file() for name in _FILES["test"])


def _batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 3, 32, 32) uint8 and labels (N,) int64 of one file."""
    batch = _unpickled(path)
    data, labels = (batch.get(b"data"), batch.get(b"labels")) if isinstance(batch, dict) else (None, None)
    size = int(np.prod(_SHAPE))
    if not (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape[1:] == (size,) and len(data)
    ):
        raise UserError(f"{path} holds no images of {size} bytes: it is no batch of CIFAR-10, or empty")
    if not (isinstance(labels, list) and len(labels) == len(data)) or any(
        type(label) is not int or not 0 <= label < _CLASSES for label in labels
    ):
        raise UserError(f"{path} has not one label in 0..{_CLASSES - 1} for each of its {len(data)} images")
    return data.reshape(-1, *_SHAPE), np.array(labels)


def _unpickled(path: Path) -> Any:
    must_be_regular(path)
    with clear_os_errors("read", path):
        if not path.exists():
            raise UserError(f"{path.parent} holds no {path.name}: give the folder cifar-10-batches-py")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than a batch of CIFAR-10: it is foreign")
        content = path.read_bytes()
    try:
        return _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # whatever a damaged pickle makes the unpickler do
        what = str(error) if isinstance(error, pickle.UnpicklingError) else type(error).__name__
        raise UserError(f"{path} is no batch of CIFAR-10: it is damaged or foreign ({what})") from None
