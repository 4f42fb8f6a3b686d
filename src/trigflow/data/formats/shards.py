"""WebDataset's shards: tar files in which the members of one sample share the name up to the first dot."""

from __future__ import annotations

import glob
import itertools
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from trigflow.data.collection import Collection, Read
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import MOST_BYTES, SUFFIXES, DamagedPicture, decoded, is_picture
from trigflow.data.labels import Labels, labels_of, names_labels, no_labels
from trigflow.data.labels import label_key as key_of_labels
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
    labels: dict[str, object] = field(default_factory=dict)  # by key, as far as they may be labels


def webdataset(path: str, label_key: str | None = "") -> Collection:
    """Images of one size from WebDataset's tar files, in their order; nothing is extracted.

    Args:
        path: a .tar file, a pattern (shards-{000..003}.tar, shards-*.tar) or a folder of .tar files. Labels are in
            NAME.cls or NAME.json ({"label": ...}), integers from 0 or texts.
        label_key: "cls" for NAME.cls, or a key of NAME.json (default: the one that is named so, see `labels.NAMES`, if
            there is one; null: no labels).

    Raises:
        UserError: no such file, a shard that is damaged or foreign, or labels for some samples only.
    """
    shards = _shards(path)
    keys: dict[str, None] = {}  # of all that the samples tell, in order
    samples = [sample for shard in shards for sample in _index(shard, label_key, keys)]
    if not samples:
        raise UserError(f"{path} holds no samples with pictures ({', '.join(SUFFIXES)})")
    entries = partial(_entries, samples)
    labels = _labels(path, samples, label_key, list(keys))
    return Collection(shards[0].stem, path, len(samples), entries, labels, tuple(shards))


def _labels(path: str, samples: list[_Sample], given: str | None, there: list[str]) -> Labels:
    held = list(dict.fromkeys(key for sample in samples for key in sample.labels))
    columns = {key: [sample.labels.get(key) for sample in samples] for key in held}
    # One that says the same as another before it is no second one.
    first = [key for n, key in enumerate(held) if columns[key] not in [columns[one] for one in held[:n]]]
    key = key_of_labels(path, given, there if given else first)
    if not key:
        return (
            no_labels(given, "the keys of .json are", there) if there else Labels(origin="no .cls or .json")
        )
    values = columns.get(key, [None])
    if None in values:
        bare = samples[values.index(None)]
        raise UserError(
            f"{bare.shard}: {bare.key} has no label ('{key}'), though others have: give all of them one, or none"
        )
    return labels_of(path, values, key)


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


def _index(shard: Path, given: str | None, keys: dict[str, None]) -> list[_Sample]:
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
            found = [_sample(shard, archive, key, list(group), given, keys) for key, group in groups]
    return [sample for sample in found if sample is not None]


def _split(name: str) -> tuple[str, str]:
    """ "a/b.left.png" -> ("a/b", "left.png")."""
    folder, slash, base = name.rpartition("/")
    stem, _, suffix = base.partition(".")
    return folder + slash + stem, suffix.lower()


def _sample(
    shard: Path,
    archive: tarfile.TarFile,
    key: str,
    members: list[tarfile.TarInfo],
    given: str | None,
    keys: dict[str, None],
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
            found = _found(shard, archive, member)
            keys |= dict.fromkeys(found)
            sample.labels |= {
                sys.intern(key): value
                for key, value in found.items()
                if value is not None and (key == given or names_labels(key))
            }
    if sample.pictures != 1:
        raise UserError(f"{shard}: {key} has {sample.pictures} pictures: each sample must have one")
    return sample


def _found(shard: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> dict[str, object]:
    """What a .cls or .json member holds, by key."""
    file = archive.extractfile(member) if member.size <= _MOST_LABEL_BYTES else None
    content = b"" if file is None else file.read()
    is_json = member.name.lower().endswith(".json")
    try:
        value = json.loads(content) if is_json else _number_or_text(content.decode("utf-8-sig").strip())
    except (ValueError, RecursionError):
        raise UserError(
            f"{shard}: {member.name} holds no label: an integer 0, 1, 2, ... or a text is expected"
        ) from None
    if is_json:
        return value if isinstance(value, dict) else {"label": value}
    return {"cls": value}


def _number_or_text(text: str) -> object:
    """ "0001" -> 1, "cat" -> "cat"; other values of JSON as they are.

    Raises:
        ValueError: it is empty, or has thousands of digits.
    """
    if not text:
        raise ValueError
    if re.fullmatch("[0-9]+", text):
        return int(text)
    try:
        return json.loads(text)
    except ValueError:
        return text


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
