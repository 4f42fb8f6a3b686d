"""Folders of picture files; sub-folders are classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trigflow.data.collection import Collection, Read, file_content
from trigflow.data.formats.picture import SUFFIXES, decoded, is_picture
from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors

_SPLITS = {"train", "training", "test", "val", "valid", "validation"}


def image_folder(path: str) -> Collection:
    """Pictures of one size in a folder: its sub-folders, sorted by name, are the classes; without any, no labels.

    Args:
        path: of the folder.

    Raises:
        UserError: no such folder, no pictures, or sub-folders that are no classes.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    with clear_os_errors("read", folder):
        flat = [folder / name for name in sorted(os.listdir(folder)) if is_picture(name)]
        classes = {} if flat else _classes(folder)
        if flat and any(is_picture(name) for inner in _folders(folder) for name in os.listdir(inner)):
            raise UserError(f"{folder} holds pictures and folders of pictures: give one or the other")
    files = flat or [file for members in classes.values() for file in members]
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    numbers = [number for number, members in enumerate(classes.values()) for _ in members]
    return Collection(
        folder.resolve().name,
        str(folder),
        len(files),
        partial(_entries, folder, files),
        torch.tensor(numbers) if numbers else None,
        len(classes),
        tuple(files),
        tuple(classes),
    )


def _folders(folder: Path) -> list[Path]:
    inner = (entry for entry in folder.iterdir() if entry.is_dir())
    return sorted(entry for entry in inner if not entry.name.startswith((".", "__MACOSX")))


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The pictures of each class, at any depth."""
    folders = _folders(folder)
    if folders and all(inner.name.lower() in _SPLITS for inner in folders):
        names = ", ".join(inner.name for inner in folders)
        raise UserError(f"{folder} holds splits, not classes: give one of its folders ({names})")
    found = {inner.name: _pictures_below(inner) for inner in folders}
    for name, members in found.items():
        if not members and any(found.values()):
            raise UserError(f"{folder / name} holds no pictures: remove it, or give it some")
    return found


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(
        Path(place) / name for place, _, names in os.walk(folder) for name in names if is_picture(name)
    )


def _entries(folder: Path, files: list[Path]) -> Iterator[tuple[str, Read]]:
    for file in files:
        yield str(file.relative_to(folder)), partial(_image, file)


def _image(file: Path) -> np.ndarray:
    return decoded(file_content(file, str(file)), str(file))
