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
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import MOST_BYTES, SUFFIXES, DamagedPicture, decoded, is_picture
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


def webdataset(path: str) -> Collection:
    """Images of one size from WebDataset's tar files, in their order; nothing is extracted.

    Args:
        path: a .tar file, a pattern (shards-{000..003}.tar, shards-*.tar) or a folder of .tar files. Labels are in
            NAME.cls (a number) or NAME.json ({"label": a number}).

    Raises:
        UserError: no such file, a shard that is damaged or foreign, or labels for some samples only.
    """
    shards = _shards(path)
    samples = [sample for shard in shards for sample in _index(shard)]
    if not samples:
        raise UserError(f"{path} holds no samples with pictures ({', '.join(SUFFIXES)})")
    given = [sample.label for sample in samples if sample.label is not None]
    if given and len(given) < len(samples):
        bare = next(sample for sample in samples if sample.label is None)
        raise UserError(
            f"{bare.shard}: {bare.key} has no label, though others have: give all of them one, or none"
        )
    labels, num_classes = class_labels(path, given) if given else (None, 0)
    entries = partial(_entries, samples)
    return Collection(shards[0].stem, path, len(samples), entries, labels, num_classes, tuple(shards))


def _shards(path: str) -> list[Path]:
    """The tar files that a path or pattern names, in the order of their names."""
    if Path(path).is_dir():
        found = sorted(Path(path).glob("*.tar"))
    elif Path(path).is_file():
        found = [Path(path)]
    else:
        found = [file for name in _braces(path) for file in _matches(name)]
    if not found:
        raise UserError(f"there is no tar file {path}")
    return found


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


def _matches(name: str) -> list[Path]:
    if not glob.has_magic(name):
        if not Path(name).is_file():
            raise UserError(f"there is no file {name}")
        return [Path(name)]
    return [Path(match) for match in sorted(glob.glob(name))]


def _index(shard: Path) -> list[_Sample]:
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
            members = (member for member in archive if member.isreg() and not member.issparse())
            groups = itertools.groupby(members, key=lambda member: _split(member.name)[0])
            found = [_sample(shard, archive, key, list(group)) for key, group in groups]
    return [sample for sample in found if sample is not None]


def _split(name: str) -> tuple[str, str]:
    """ "a/b.left.png" -> ("a/b", "left.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _sample(
    shard: Path, archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]
) -> _Sample | None:
    if not key.rpartition("/")[2] or key.startswith("__"):  # hidden files, and WebDataset's own notes
        return None
    sample = _Sample(shard, key)
    for member in members:
        suffix = _split(member.name)[1]
        if is_picture(f"a.{suffix}"):
            sample.offset, sample.size = member.offset_data, member.size
            sample.pictures += 1
        elif suffix in ("cls", "json"):
            label = _label(shard, archive, member)
            sample.label = sample.label if label is None else label
    if sample.pictures != 1:
        raise UserError(f"{shard}: {key} has {sample.pictures} pictures: each sample must have one")
    return sample


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


def _entries(samples: list[_Sample]) -> Iterator[tuple[str, Read]]:
    for shard, group in itertools.groupby(samples, key=lambda sample: sample.shard):
        with clear_os_errors("read", shard):
            file = shard.open("rb")
        with file:
            for sample in group:
                yield sample.key, partial(_image, file.fileno(), sample)


def _image(handle: int, sample: _Sample) -> np.ndarray:
    where = f"{sample.shard}: {sample.key}"
    if sample.size > MOST_BYTES:
        raise DamagedPicture(f"{where} claims {sample.size} bytes, more than {MOST_BYTES}")
    with open(handle, "rb", closefd=False) as file:
        file.seek(sample.offset)
        return decoded(file.read(sample.size), where)
