"""Zip archives in EDM's layout: pictures (or .npy arrays) in any folders, and labels in dataset.json."""

from __future__ import annotations

import contextlib
import stat
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from trigflow.data.collection import Collection, Read
from trigflow.data.formats.background import WHITE, Background
from trigflow.data.formats.candidates import HEAD, SPECIAL, LeftOut, is_hidden, why_not
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import (
    MOST_BYTES,
    SUFFIXES,
    DamagedPicture,
    decoded,
    decoded_array,
)
from trigflow.data.labels import TABLE, Labels, labels_of_table
from trigflow.system.errors import UserError

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError)


def edm_zip(path: str, background: str = WHITE) -> Collection:
    """Images of one size from a zip archive, in the order of their names.

    Args:
        path: of the archive: pictures (grey or RGB) or .npy arrays (C, H, W) uint8, and, if there are labels,
            dataset.json with {"labels": [["00000/img00000000.png", 6], ...]} (null or absent: none), and perhaps the
            names of the classes, {"classes": ["cat", ...]}.
        background: colour behind transparent pixels, a name or #rrggbb.

    Raises:
        UserError: no such file, no archive, no images in it, labels that do not fit them, or no colour.
    """
    source = Path(path)
    if not source.is_file():
        raise UserError(f"there is no file {source}")
    colour, left_out = Background(background), LeftOut()
    with _opened(source) as archive:
        names = _images(archive, left_out)
        if not names:
            raise UserError(f"{source} holds no images ({', '.join(SUFFIXES)} or .npy)")
        labels = _labels(source, archive, names)
    return Collection(
        source.stem,
        str(source),
        len(names),
        partial(_entries, source, names, colour),
        labels,
        (source,),
        background=colour,
        left_out=left_out.note,
    )


def _images(archive: zipfile.ZipFile, left_out: LeftOut) -> list[str]:
    """The names of pictures and arrays, sorted."""
    found = []
    for name in sorted(set(archive.namelist())):
        member = archive.getinfo(name)
        if member.is_dir():
            continue
        is_array = name.lower().endswith(".npy") and not is_hidden(name)
        why = "" if is_array else why_not(name, partial(_head, archive, name))
        if why := SPECIAL if stat.S_ISLNK(member.external_attr >> 16) else why:
            left_out.add(why, name)
        else:
            found.append(name)
    return found


def _head(archive: zipfile.ZipFile, name: str) -> bytes:
    """Of a member that may be damaged, which does not matter unless it is an image."""
    try:
        with archive.open(name) as member:
            return member.read(HEAD)
    except (*_DAMAGE, OSError):
        return b""


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile]:
    complaint = f"{source} is no zip archive that can be read: it is damaged or foreign"
    with damage_told(source, complaint, _DAMAGE), zipfile.ZipFile(source) as archive:
        yield archive


def _entries(source: Path, names: list[str], background: Background) -> Iterator[tuple[str, Read]]:
    with _opened(source) as archive:
        for name in names:
            yield name, partial(_image, source, archive, name, background)


def _image(source: Path, archive: zipfile.ZipFile, name: str, background: Background) -> np.ndarray:
    """(1 or 3, H, W) uint8."""
    content, where = _content(source, archive, name), f"{source}: {name}"
    is_array = name.lower().endswith(".npy")
    return decoded_array(content, where) if is_array else decoded(content, where, background)


def _content(source: Path, archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member; no more than it says, and that within bounds."""
    size = archive.getinfo(name).file_size
    if size > MOST_BYTES:
        raise DamagedPicture(
            f"{source}: {name} claims {size} bytes, more than {MOST_BYTES}: it is damaged or foreign"
        )
    try:
        with archive.open(name) as member:
            # `read()` would decompress all that is there, whatever its size says.
            return member.read(size + 1)
    except (*_DAMAGE, OSError):
        raise DamagedPicture(f"{source}: {name} is damaged: it cannot be decompressed") from None


def _labels(source: Path, archive: zipfile.ZipFile, names: list[str]) -> Labels:
    """In the order of the names."""
    tables = sorted(name for name in set(archive.namelist()) if _is_table(name))
    if not tables:
        return Labels(origin=f"the archive has no {TABLE}")
    if len(tables) > 1:
        raise UserError(f"{source} holds several {TABLE}: {', '.join(tables)}; leave one in it")
    above = tables[0].removesuffix(TABLE)
    if others := [name for name in names if not name.startswith(above)]:
        raise UserError(f"{source}: {others[0]} is not below {above}, where {TABLE} is: leave it out")
    found = labels_of_table(
        source, _content(source, archive, tables[0]), [name.removeprefix(above) for name in names]
    )
    return found or Labels(origin=f"{TABLE} has none")


def _is_table(name: str) -> bool:
    return name.rpartition("/")[2] == TABLE and not is_hidden(name)
