"""Zip archives in EDM's layout: pictures (or .npy arrays) in any folders, and labels in dataset.json."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from trigflow.codecs import ImageCodec
from trigflow.data.dataset import Dataset
from trigflow.errors import UserError

LABELS = "dataset.json"
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
# What Pillow and numpy raise for a picture or an array that is damaged or foreign.
_DAMAGE = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def edm_zip(path: str, sigma_data: float = 0.5, progress: bool = True) -> Dataset:
    """Images of one size from a zip archive, in the order of their names; into memory.

    Args:
        path: of the archive: pictures (grey or RGB) or .npy arrays (C, H, W) uint8, and, if there are labels,
            dataset.json with {"labels": [["00000/img00000000.png", 6], ...]} (null or absent: none).
        sigma_data: standard deviation of x_0.
        progress: show a bar on stderr.

    Raises:
        UserError: no such file, no archive, no images in it, one that is damaged or of another shape, or labels that do
            not name each image once.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"there is no file {source}")
    try:
        with zipfile.ZipFile(source) as archive:
            names = sorted(name for name in archive.namelist() if name.lower().endswith((*PICTURES, ".npy")))
            if not names:
                raise UserError(f"{source} holds no images ({', '.join(PICTURES)} or .npy)")
            labels = _labels(source, archive, names)
            images = _images(source, archive, names, progress)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        raise UserError(f"{source} is no zip archive that can be read: it is damaged or foreign") from None
    except OSError as error:
        raise UserError(f"cannot read {source}: {error.strerror or error}") from None
    num_classes = 0 if labels is None else int(labels.max()) + 1
    return Dataset(source.stem, images, labels, num_classes, ImageCodec.measure(images, sigma_data))


def _images(source: Path, archive: zipfile.ZipFile, names: list[str], progress: bool) -> torch.Tensor:
    first = _image(source, names[0], archive.read(names[0]))
    images = torch.empty((len(names), *first.shape), dtype=torch.uint8)
    bar = tqdm(names, desc=f"reading {source.name}", unit="img", delay=1, disable=not progress)
    for row, name in enumerate(bar):
        image = _image(source, name, archive.read(name))
        if image.shape != first.shape:
            raise UserError(
                f"{source}: {name} has the shape {image.shape}, {names[0]} {first.shape}: give images of one size"
            )
        images[row] = torch.from_numpy(image)
    return images


def _image(source: Path, name: str, content: bytes) -> np.ndarray:
    """(C, H, W) uint8, C = 1 or 3."""
    try:
        if name.lower().endswith(".npy"):
            array = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            with Image.open(io.BytesIO(content)) as picture:
                grey = picture.mode in ("L", "1", "LA")
                pixels = np.array(picture.convert("L" if grey else "RGB"))
            array = pixels[None] if grey else pixels.transpose(2, 0, 1)
    except _DAMAGE as error:
        raise UserError(f"{source}: {name} is damaged or no image ({type(error).__name__})") from None
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[0] not in (1, 3) or array.size == 0:
        raise UserError(
            f"{source}: {name} holds {array.dtype} of shape {array.shape}, not uint8 (1 or 3, H, W)"
        )
    return np.ascontiguousarray(array)


def _labels(source: Path, archive: zipfile.ZipFile, names: list[str]) -> torch.Tensor | None:
    """(N,) int64 in the order of the names, or None."""
    if LABELS not in archive.namelist():
        return None
    entries = _label_list(source, archive.read(LABELS))
    if entries is None:
        return None
    try:
        found = {str(name): label for name, label in entries}
    except (TypeError, ValueError):
        raise _foreign_labels(source) from None
    for name in names:
        if not (isinstance(found.get(name), int) and 0 <= found[name] < len(names)):
            raise UserError(
                f"{source}: {LABELS} has no label 0, 1, 2, ... for {name}, but {found.get(name)!r:.40}"
            )
    return torch.tensor([found[name] for name in names])


def _label_list(source: Path, content: bytes) -> list[Any] | None:
    try:
        data = json.loads(content)
    except (ValueError, RecursionError):
        raise _foreign_labels(source) from None
    if not isinstance(data, dict) or not isinstance(data.get("labels"), list | None):
        raise _foreign_labels(source)
    labels: list[Any] | None = data.get("labels")
    return labels


def _foreign_labels(source: Path) -> UserError:
    return UserError(
        f'{source}: its {LABELS} is damaged or foreign; wanted is {{"labels": [[name, label], ...]}}'
    )
