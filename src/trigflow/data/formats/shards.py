"""WebDataset's shards: tar files in which the members of one sample share the name up to the first dot."""

from __future__ import annotations

import glob
import itertools
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from trigflow.data.collection import Collection, Read, class_labels
from trigflow.data.formats.background import WHITE, Background
from trigflow.data.formats.candidates import HEAD, HIDDEN, NO_PICTURE, SPECIAL, LeftOut, is_picture, why_not
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import MOST_BYTES, SUFFIXES, DamagedPicture, decoded
from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors, must_be_regular

_BLOCK = 512  # bytes: a tar file is made of blocks, and ends with empty ones
_MOST_LABEL_BYTES = 2**20
_MOST_SHARDS = 10**6


@dataclass
class _Sample:
    """Where the picture of a sample lies in its shard."""

    shard: Path
    key: str
    offset: int = 0
    size: int = 0
    pictures: int = 0
    label: int | None = None

    def take(self, picture: tarfile.TarInfo) -> None:
        """One of the members that are pictures."""
        self.offset, self.size = picture.offset_data, picture.size
        self.pictures += 1


def webdataset(path: str, background: str = WHITE) -> Collection:
    """Images of one size from WebDataset's tar files, in their order; nothing is extracted.

    Args:
        path: a .tar file, a pattern (shards-{000..003}.tar, shards-*.tar) or a folder of .tar files. Labels are in
            NAME.cls (a number) or NAME.json ({"label": a number}).
        background: colour behind transparent pixels, a name or #rrggbb.

    Raises:
        UserError: no such file, a shard that is damaged or foreign, labels for some samples only, or no colour.
    """
    colour, left_out = Background(background), LeftOut()
    shards = _shards(path)
    samples = [sample for shard in shards for sample in _index(shard, left_out)]
    if not samples:
        raise UserError(f"{path} holds no samples with pictures ({', '.join(SUFFIXES)})")
    given = [sample.label for sample in samples if sample.label is not None]
    if given and len(given) < len(samples):
        bare = next(sample for sample in samples if sample.label is None)
        raise UserError(
            f"{bare.shard}: {bare.key} has no label, though others have: give all of them one, or none"
        )
    labels, num_classes = class_labels(path, given) if given else (None, 0)
    return Collection(
        shards[0].stem,
        path,
        len(samples),
        partial(_entries, samples, colour),
        labels,
        num_classes,
        tuple(shards),
        background=colour,
        left_out=left_out.note,
    )


def _shards(path: str) -> list[Path]:
    """The tar files that a path or pattern names, in the order of their names."""
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.tar"))
    elif Path(path).is_file():
        found = [Path(path)]
    else:
        found = _matching(path)
    if not found:
        raise UserError(f"there is no tar file {path}")
    return found


def _matching(path: str) -> list[Path]:
    """Of a pattern: that part of it which exists is a path."""
    folder = Path(path).parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    pattern = str(Path(path).relative_to(folder))
    return [file for name in _braces(pattern) for file in _matches(folder, name)]


def _braces(pattern: str) -> list[str]:
    """shards-{000..003}.tar -> its four names; {a,b} likewise.

    Raises:
        UserError: a range that is empty or endless.
    """
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if not found:
        return [pattern]
    if found[3] is not None:
        words = found[3].split(",")
    else:
        first, last = int(found[1]), int(found[2])
        if not 0 <= last - first < _MOST_SHARDS:
            raise UserError(f"{pattern}: the range {found[0]} must go up, by less than {_MOST_SHARDS}")
        words = [f"{number:0{len(found[1])}d}" for number in range(first, last + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [name for word in words for name in _braces(head + word + tail)]


def _matches(folder: Path, name: str) -> list[Path]:
    if (folder / name).is_file():
        return [folder / name]
    if not glob.has_magic(name):
        raise UserError(f"there is no file {folder / name}")
    return [folder / match for match in sorted(glob.glob(name, root_dir=folder))]


def _index(shard: Path, left_out: LeftOut) -> list[_Sample]:
    """The samples of a shard; only the headers and the labels are read."""
    must_be_regular(shard)
    complaint = f"{shard} is no whole tar file: it is damaged, compressed or foreign"
    with damage_told(shard, complaint, (tarfile.TarError, EOFError, ValueError, OverflowError)):
        with shard.open("rb") as file:
            file.seek(0, 2)
            if file.tell() < 2 * _BLOCK or file.tell() % _BLOCK:
                raise EOFError
            file.seek(-_BLOCK, 2)
            # tarfile takes a shard that was cut between two members for a whole one.
            if any(file.read(_BLOCK)):
                raise EOFError
        with tarfile.open(shard, "r:") as archive:
            groups = itertools.groupby(_files(archive, left_out), key=lambda member: _split(member.name)[0])
            found = [_sample(shard, archive, key, list(group), left_out) for key, group in groups]
    return [sample for sample in found if sample is not None]


def _files(archive: tarfile.TarFile, left_out: LeftOut) -> Iterator[tarfile.TarInfo]:
    for member in archive:
        if member.isreg() and not member.issparse():
            yield member
        elif not member.isdir():
            left_out.add(SPECIAL, member.name)


def _split(name: str) -> tuple[str, str]:
    """ "a/b.left.png" -> ("a/b", "left.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _sample(
    shard: Path, archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo], left_out: LeftOut
) -> _Sample | None:
    if key.startswith("__"):  # WebDataset's own notes
        return None
    if not key.rpartition("/")[2]:
        for member in members:
            left_out.add(HIDDEN, member.name)
        return None
    sample, others = _Sample(shard, key), []
    for member in members:
        suffix = _split(member.name)[1]
        if is_picture(f"a.{suffix}"):
            sample.take(member)
        elif suffix in ("cls", "json"):
            label = _label(shard, archive, member)
            sample.label = sample.label if label is None else label
        else:
            others.append(member)
    if not sample.pictures:  # by their endings
        found = [member for member in others if _begins_as_picture(archive, member)]
        others = [member for member in others if member not in found]
        for member in found:
            sample.take(member)
    if sample.pictures != 1:
        raise UserError(f"{shard}: {key} has {sample.pictures} pictures: each sample must have one")
    for member in others:
        left_out.add(NO_PICTURE, member.name)
    return sample


def _begins_as_picture(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bool:
    def head() -> bytes:
        file = archive.extractfile(member)
        return b"" if file is None else file.read(HEAD)

    return not why_not(f"a.{_split(member.name)[1]}", head)


def _label(shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> int | None:
    """The label of a .cls or .json member; None for JSON without one."""
    file = archive.extractfile(member) if member.size <= _MOST_LABEL_BYTES else None
    content = b"" if file is None else file.read()
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        value = ()  # no label at all
    if member.name.lower().endswith(".json") and isinstance(value, dict):
        value = value.get("label")
    if value is None or type(value) is int:
        return value
    raise UserError(f"{shard}: {member.name} holds no label: an integer 0, 1, 2, ... is expected")


def _entries(samples: list[_Sample], background: Background) -> Iterator[tuple[str, Read]]:
    for shard, group in itertools.groupby(samples, key=lambda sample: sample.shard):
        with clear_os_errors("read", shard):
            file = shard.open("rb")
        with file:
            for sample in group:
                yield sample.key, partial(_image, file.fileno(), sample, background)


def _image(handle: int, sample: _Sample, background: Background) -> np.ndarray:
    where = f"{sample.shard}: {sample.key}"
    if sample.size > MOST_BYTES:
        raise DamagedPicture(f"{where} claims {sample.size} bytes, more than {MOST_BYTES}")
    with open(handle, "rb", closefd=False) as file:
        file.seek(sample.offset)
        return decoded(file.read(sample.size), where, background)
