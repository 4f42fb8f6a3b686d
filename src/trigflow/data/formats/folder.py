"""Folders of picture files; sub-folders are classes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch

from trigflow.data.collection import Collection, Read, file_content
from trigflow.data.formats.background import WHITE, Background
from trigflow.data.formats.candidates import LeftOut, pictures_below, pictures_in
from trigflow.data.formats.picture import SUFFIXES, decoded
from trigflow.data.labels import FOLDERS, TABLE, Labels, labels_of_table, natural
from trigflow.system.errors import UserError

_SPLITS = {"train", "training", "test", "val", "valid", "validation"}


def image_folder(path: str, background: str = WHITE) -> Collection:
    """Pictures of one size in a folder; labels are in EDM's dataset.json beside or above them, or folders are classes.

    Such folders are numbered in natural order ("2" before "10"), whatever their pictures' number.

    Args:
        path: of the folder.
        background: colour behind transparent pixels, a name or #rrggbb.

    Raises:
        UserError: no such folder, no pictures, sub-folders that are no classes, or no colour.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}")
    colour, left_out = Background(background), LeftOut(str(folder))
    flat, folders = pictures_in(str(folder), left_out)
    below = (name for inner in folders for name in pictures_below(inner, left_out, above=path))
    if flat and (deeper := next(below, "")):
        names = f"{os.path.basename(flat[0])}, {os.path.relpath(deeper, folder)}"
        raise UserError(f"{folder} holds pictures and folders of pictures ({names}): give one or the other")
    classes = {} if flat else _classes(folder, folders, left_out)
    files = [Path(name) for name in flat] or [file for members in classes.values() for file in members]
    if not files:
        raise UserError(f"{folder} holds no pictures ({', '.join(SUFFIXES)})")
    return Collection(
        folder.resolve().name,
        str(folder),
        len(files),
        partial(_entries, folder, files, colour),
        _labels(folder, files, classes),
        tuple(files),
        background=colour,
        left_out=left_out.note,
    )


def _labels(folder: Path, files: list[Path], classes: dict[str, list[Path]]) -> Labels:
    """Of dataset.json, else of the folders."""
    if (found := _of_table(folder, files)) is not None:
        return found
    if not classes:
        return Labels(origin=f"the pictures are in one folder, without {TABLE}")
    numbers = [number for number, members in enumerate(classes.values()) for _ in members]
    return Labels(torch.tensor(numbers), len(classes), tuple(classes), FOLDERS)


def _of_table(folder: Path, files: list[Path]) -> Labels | None:
    """Of the dataset.json in a folder of the pictures or between it and `folder`, or beside `folder`."""
    places = {place for inner in {file.parent for file in files} for place in (inner, *inner.parents)}
    tables = sorted(
        place / TABLE for place in places if place.is_relative_to(folder) and (place / TABLE).is_file()
    )
    if len(tables) > 1:
        raise UserError(f"{folder} holds several {TABLE}: {', '.join(map(str, tables))}; leave one in it")
    for table in tables:
        if others := [file for file in files if not file.is_relative_to(table.parent)]:
            raise UserError(f"{others[0]} is not below {table.parent}, where {TABLE} is: give that folder")
        names = [file.relative_to(table.parent).as_posix() for file in files]
        if (found := labels_of_table(table.parent, file_content(table, str(table)), names)) is not None:
            return found
    whole = folder.resolve()
    above = whole.parent / TABLE
    if tables or not above.is_file():
        return None
    names = [f"{whole.name}/{file.relative_to(folder).as_posix()}" for file in files]
    content = file_content(above, str(above))
    # It may belong to anything, unless it names these pictures.
    return labels_of_table(above.parent, content, names) if json.dumps(names[0]).encode() in content else None


def _classes(folder: Path, folders: list[str], left_out: LeftOut) -> dict[str, list[Path]]:
    """The pictures of each class, at any depth; classes in natural order."""
    folders = sorted(folders, key=lambda inner: natural(os.path.basename(inner)))
    names = [os.path.basename(inner) for inner in folders]
    if folders and all(name.lower() in _SPLITS for name in names):
        raise UserError(f"{folder} holds splits, not classes: give one of its folders ({', '.join(names)})")
    found = {
        name: sorted(Path(file) for file in pictures_below(inner, left_out, above=str(folder)))
        for name, inner in zip(names, folders, strict=True)
    }
    for name, members in found.items():
        if not members and any(found.values()):
            why = f" ({left_out.note})" if left_out.note else ""
            raise UserError(f"{folder / name} holds no pictures{why}: remove it, or give it some")
    return found


def _entries(folder: Path, files: list[Path], background: Background) -> Iterator[tuple[str, Read]]:
    for file in files:
        yield str(file.relative_to(folder)), partial(_image, file, background)


def _image(file: Path, background: Background) -> np.ndarray:
    return decoded(file_content(file, str(file)), str(file), background)
