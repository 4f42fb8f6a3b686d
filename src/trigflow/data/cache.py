"""Decoded images on the disk, mapped into memory: a large data set costs its decoding once, and no memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from tokenize import TokenError
from typing import NamedTuple

import numpy as np

from trigflow.system.cache import cache_folder
from trigflow.system.errors import UserError
from trigflow.system.files import replacing, write_atomically

MAPPED_BYTES = 2**28  # data that is larger is mapped, not read


def is_large(size: float) -> bool:
    """Whether data of so many bytes is to be mapped rather than read."""
    return size > MAPPED_BYTES


def cache_key(files: Iterable[Path], options: Iterable[object]) -> str:
    """A name for what is decoded from these files, in this order and with these options; it changes as they do."""
    digest = hashlib.sha256()
    for file in files:
        state = file.stat()
        digest.update(repr((str(file.resolve()), state.st_size, state.st_mtime_ns)).encode())
    digest.update(repr(list(options)).encode())
    return digest.hexdigest()[:32]


def mapped(path: Path) -> np.ndarray:
    """The array of a .npy file, mapped into memory.

    It may be written to, which changes the memory of this process alone: torch warns of read-only arrays.

    Raises:
        OSError, ValueError: no such file, or it is damaged.
    """
    array: np.ndarray = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def cached_images(
    key: str, shape: tuple[int, ...], images: Iterable[np.ndarray], anew: bool = False
) -> np.ndarray:
    """Mapped uint8 images of a former start, or else of `images`, which are then written to the cache.

    A file of another size or shape is damaged, and recreated.

    Args:
        key: see cache_key.
        shape: (N, C, H, W) of all of them.
        images: the N images (C, H, W); not looked at when the cache has them.
        anew: look at them all the same, since what was counted among them is lost.

    Raises:
        UserError: the cache cannot be written, or one of the images cannot be had.
    """
    path = cache_folder() / f"{key}.npy"
    try:
        found = None if anew else mapped(path)
        if found is not None and found.shape == shape and found.dtype == np.uint8:
            return found
    except (OSError, ValueError, EOFError, SyntaxError, TokenError):
        pass  # none yet, or a damaged one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, shape, images)
        return mapped(path)
    except OSError as error:
        size = np.prod(shape, dtype=float) / 2**30
        raise UserError(
            f"cannot write {size:.1f} GiB of decoded images to {path}: {error.strerror or error}; "
            "set TRIGFLOW_CACHE to a folder with room"
        ) from None


def _write(path: Path, shape: tuple[int, ...], images: Iterable[np.ndarray]) -> None:
    """Plain writes: a full disk is an error here, and would kill through a map."""
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, header)
        for image in images:
            file.write(image.tobytes())


class Counts(NamedTuple):
    """What was counted while images were decoded: how often each pixel value occurs, and pictures with transparency."""

    levels: list[int]
    transparent: int


def cached_counts(key: str, size: int) -> Counts | None:
    """Those of the `size` pixels of the images under this key, if they were kept."""
    try:
        found = json.loads((cache_folder() / f"{key}.json").read_text())
        levels, transparent = found["levels"], found["transparent"]
        whole = len(levels) == 256 and all(type(n) is int and n >= 0 for n in [*levels, transparent])
        return Counts(levels, transparent) if whole and sum(levels) == size else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def cache_counts(key: str, counts: Counts) -> None:
    """Keeps them for cached_counts; without room for so little, images are decoded again next time."""
    with contextlib.suppress(UserError):
        write_atomically(cache_folder() / f"{key}.json", json.dumps(counts._asdict()).encode())
