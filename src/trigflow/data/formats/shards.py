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
from trigflow.data.formats.background import WHITE, Background
from trigflow.data.formats.candidates import HEAD, HIDDEN, NO_PICTURE, SPECIAL, LeftOut, is_picture, why_not
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import MOST_BYTES, SUFFIXES, DamagedPicture, decoded
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

    def take(self, picture: tarfile.TarInfo) -> None:
        """One of the members that are pictures."""
        self.offset, self.size = picture.offset_data, picture.size
        self.pictures += 1


def webdataset(path: str, label_key: str | None = "", background: str = WHITE) -> Collection:
    """Images of one size from WebDataset's tar files, in their order; nothing is extracted.

    Args:
        path: a .tar file, a pattern (shards-{000..003}.tar, shards-*.tar) or a folder of .tar files. Labels are in
            NAME.cls or NAME.json ({"label": ...}), integers from 0 or texts.
        label_key: "cls" for NAME.cls, or a key of NAME.json (default: the one that is named so, see `labels.NAMES`, if
            there is one; null: no labels).
        background: colour behind transparent pixels, a name or #rrggbb.

    Raises:
        UserError: no such file, a shard that is damaged or foreign, labels for some samples only, or no colour.
    """
    colour, left_out = Background(background), LeftOut()
    shards = _shards(path)
    keys: dict[str, None] = {}  # of all that the samples tell, in order
    samples = [sample for shard in shards for sample in _index(shard, label_key, keys, left_out)]
    if not samples:
        raise UserError(f"{path} holds no samples with pictures ({', '.join(SUFFIXES)})")
    return Collection(
        shards[0].stem,
        path,
        len(samples),
        partial(_entries, samples, colour),
        _labels(path, samples, label_key, list(keys)),
        tuple(shards),
        background=colour,
        left_out=left_out.note,
    )


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


def _index(shard: Path, given: str | None, keys: dict[str, None], left_out: LeftOut) -> list[_Sample]:
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
            found = [
                _sample(shard, archive, key, list(group), given, keys, left_out) for key, group in groups
            ]
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
    shard: Path,
    archive: tarfile.TarFile,
    key: str,
    members: list[tarfile.TarInfo],
    given: str | None,
    keys: dict[str, None],
    left_out: LeftOut,
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
            held = _found(shard, archive, member)
            keys |= dict.fromkeys(held)
            sample.labels |= {
                sys.intern(name): value
                for name, value in held.items()
                if value is not None and (name == given or names_labels(name))
            }
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
