"""IDX files, the format of MNIST and Fashion-MNIST: two zero bytes, type, rank, big-endian sizes, then the numbers."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, Literal, cast

import numpy as np
import torch

from trigflow.data.collection import Collection, of_pixels
from trigflow.data.formats.damage import damage_told
from trigflow.data.labels import Labels
from trigflow.system.errors import UserError
from trigflow.system.files import is_bomb

_UINT8 = 0x08  # the only type that these data sets use
_CLASSES = 10
_PREFIX = {"train": "train", "test": "t10k"}


def mnist(folder: str, split: Literal["train", "test"] = "train") -> Collection:
    """MNIST, Fashion-MNIST, or other data in files of the same names, from a folder; nothing is downloaded.

    Args:
        folder: with train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., each as it is or with .gz.
        split: "train" (60,000 images 28x28) or "test" (10,000).

    Raises:
        UserError: a file that is missing, damaged or foreign, or images and labels that do not belong together.
    """
    images_path = _find(Path(folder), f"{_PREFIX[split]}-images", 3)
    labels_path = _find(Path(folder), f"{_PREFIX[split]}-labels", 1)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise UserError(
            f"{images_path} holds {len(images)} images, {labels_path.name} {len(labels)} labels: "
            "they do not belong together"
        )
    if images.size == 0:
        raise UserError(f"{images_path} is empty: its sizes are {images.shape}")
    if labels.max() >= _CLASSES:
        raise UserError(
            f"{labels_path} holds the label {labels.max()}: there are {_CLASSES} classes, from 0 on"
        )
    pixels = torch.from_numpy(images)[:, None]
    values = torch.from_numpy(labels.astype(np.int64))
    return of_pixels("mnist", str(images_path), pixels, Labels(values, _CLASSES, origin=labels_path.name))


def read_idx(path: Path, rank: int) -> np.ndarray:
    """The array of an IDX file of bytes, compressed or not.

    Args:
        path: of the file.
        rank: number of dimensions that it must have.

    Returns:
        uint8, of `rank` dimensions.

    Raises:
        UserError: it cannot be read, is damaged (truncated, or longer than it says) or no such file.
    """
    start = 4 + 4 * rank
    complaint = f"{path} is damaged: it cannot be decompressed"
    with damage_told(path, complaint, (EOFError, zlib.error, gzip.BadGzipFile)), _opened(path) as file:
        head = file.read(start)
        if head[:4] != bytes([0, 0, _UINT8, rank]) or len(head) < start:
            raise UserError(
                f"{path} is no IDX file of bytes in {rank} dimensions: it is damaged, foreign or another of the four"
            )
        sizes = struct.unpack(f">{rank}I", head[4:])
        wanted, there = math.prod(sizes), path.stat().st_size
        if is_bomb(wanted, there):
            raise UserError(f"{path} is damaged: {there} bytes cannot hold {wanted} ({sizes})")
        content = file.read(wanted + 1)  # no more, however much there is
    if len(content) != wanted:
        held = f"more than {wanted}" if len(content) > wanted else f"{len(content)}"
        raise UserError(f"{path} is damaged: it holds {held} bytes, not {wanted} ({sizes})")
    return np.frombuffer(content, np.uint8).reshape(sizes).copy()


def _opened(path: Path) -> BinaryIO:
    """The bytes, decompressed while they are read."""
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def has_test_part(folder: Path) -> bool:
    """Whether the folder holds the 10,000 images for testing, and their labels."""
    files = (_names(f"{_PREFIX['test']}-{what}", rank) for what, rank in (("images", 3), ("labels", 1)))
    return all(any((folder / name).is_file() for name in names) for names in files)


def _names(stem: str, rank: int) -> list[str]:
    """Those that are in use for one of the four files."""
    return [f"{stem}{mark}idx{rank}-ubyte{compressed}" for compressed in ("", ".gz") for mark in ("-", ".")]


def _find(folder: Path, stem: str, rank: int) -> Path:
    """The file under one of the names that are in use."""
    names = _names(stem, rank)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} holds no {names[0]} (nor with .gz): give the folder of the four IDX files")
