"""Which files are pictures, by one rule for folders, archives and shards; what is left out, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from trigflow.data.formats.picture import SUFFIXES
from trigflow.data.labels import TABLE
from trigflow.system.errors import printable
from trigflow.system.files import clear_os_errors

HEAD = 32  # bytes that tell what a file is
HIDDEN, NO_PICTURE = "hidden", "without a picture"
BROKEN, AGAIN = "behind a broken link", "behind a link to a folder that is read already"
SPECIAL, UNREADABLE = "not a regular file", "unreadable"

# Endings that say what a file is: such files are not opened to look for a picture. Raw photographs begin as TIFF does.
_OTHERS = (
    *(".txt", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".md", ".html", ".yaml", ".yml", ".ini", ".log"),
    *(".db", ".npy", ".npz", ".pt", ".safetensors", ".zip", ".tar", ".gz", ".parquet", ".arrow", ".pdf"),
    *(".ps", ".eps", ".svg", ".psd", ".heic", ".mp4", ".mov"),
    *(".arw", ".cr2", ".dng", ".nef", ".nrw", ".orf", ".pef", ".rw2", ".srw"),
)
_STARTS = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II[*+]\0|MM\0[*+]|P[1-6]\s+(\d+\s+\d|#)|RIFF....WEBP"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0|....ftypavi[fs]",
    re.DOTALL,
)
_NAMED = 3  # of the files that are left out for one reason


class LeftOut:
    """Files that are not taken for pictures, by the reason: how many, and the first three of them.

    Args:
        source: folder that they are in, left out of their names.
    """

    def __init__(self, source: str = "") -> None:
        self._start = source.rstrip("/") + "/"
        self._counts: dict[str, int] = {}
        self._first: dict[str, list[str]] = {}

    def add(self, why: str, name: str) -> None:
        """One file."""
        if os.path.basename(name) == TABLE:  # what is made of it is told with the labels
            return
        self._counts[why] = self._counts.get(why, 0) + 1
        first = self._first.setdefault(why, [])
        if len(first) < _NAMED:
            first.append(name.removeprefix(self._start))

    @property
    def note(self) -> str:
        """One line, "" where nothing was left out."""
        parts = [
            f"{count} {why} ({', '.join(self._first[why])}{', ...' if count > _NAMED else ''})"
            for why, count in self._counts.items()
        ]
        return printable(f"left out: {'; '.join(parts)}") if parts else ""


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder that it is in, is hidden, or one that archivers add."""
    return any(part == "__MACOSX" or (part[:1] == "." and part != ".") for part in name.split("/"))


def is_picture(name: str) -> bool:
    """Whether a name ends as a picture's does, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not is_hidden(name)


def why_not(name: str, head: Callable[[], bytes]) -> str:
    """Why a file is not taken for a picture; "" where it is one.

    Args:
        name: of the file. Where its ending is known, the file is not opened; whether it holds a picture, as such an
            ending says, is seen when it is decoded.
        head: reads its first HEAD bytes.
    """
    if is_hidden(name):
        return HIDDEN
    name = name.lower()
    if name.endswith(SUFFIXES):
        return ""
    return NO_PICTURE if name.endswith(_OTHERS) or not _STARTS.match(head()) else ""


def pictures_in(folder: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """The pictures and the folders right in a folder, by name; links are followed.

    Raises:
        UserError: the folder cannot be read.
    """
    pictures, folders = [], []
    with clear_os_errors("read", Path(folder)), os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if is_hidden(entry.name):
            left_out.add(HIDDEN, entry.path)
        elif _is(entry, os.DirEntry.is_dir, os.path.isdir):
            folders.append(entry.path)
        elif why := _why_not(entry):
            left_out.add(why, entry.path)
        else:
            pictures.append(entry.path)
    return pictures, folders


def pictures_below(folder: str, left_out: LeftOut, above: str = "") -> Iterator[str]:
    """The pictures in a folder and in those below it, each folder once; links are followed.

    Args:
        folder: where they are.
        left_out: takes what is left out.
        above: a folder that is not entered, by whatever link.

    Raises:
        UserError: a folder cannot be read.
    """
    seen, waiting = {os.path.realpath(above)} if above else set(), [folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            left_out.add(AGAIN, place)
            continue
        seen.add(real)
        pictures, folders = pictures_in(place, left_out)
        yield from pictures
        waiting += reversed(folders)


def _why_not(entry: os.DirEntry[str]) -> str:
    if _is(entry, os.DirEntry.is_file, os.path.isfile):
        try:
            return why_not(entry.name, partial(_head, entry.path))
        except OSError:
            return UNREADABLE
    return BROKEN if entry.is_symlink() and not os.path.exists(entry.path) else SPECIAL


def _is(
    entry: os.DirEntry[str], of_entry: Callable[[os.DirEntry[str]], bool], of_path: Callable[[str], bool]
) -> bool:
    """What an entry of a folder or the target of a link is; where that cannot be told, no."""
    return of_path(entry.path) if entry.is_symlink() else of_entry(entry)


def _head(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)
