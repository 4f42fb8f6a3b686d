"""Data sets of Hugging Face: Parquet files, folders of `save_to_disk`, and names on the hub."""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trigflow.data.collection import Collection, Read
from trigflow.data.formats.background import WHITE, Background
from trigflow.data.formats.damage import damage_told
from trigflow.data.formats.picture import MOST_BYTES, DamagedPicture, decoded
from trigflow.data.labels import class_names, labels_of, no_labels
from trigflow.data.labels import label_key as key_of_labels
from trigflow.system.errors import UserError, did_you_mean
from trigflow.system.files import must_be_regular

HUB = "hf:"
_SPLITS = ("train", "test", "validation", "valid", "val", "dev")
_ROWS = 64  # decoded from a file at once
# What pyarrow raises of damaged files, besides its own errors: some damage is found by Python, when a value is made.
_DAMAGE = (
    *(OSError, ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, SystemError),
    MemoryError,
)


def huggingface(
    path: str,
    split: str = "train",
    image_key: str = "",
    label_key: str | None = "",
    background: str = WHITE,
) -> Collection:
    """Images of one size from a data set in Hugging Face's formats; needs pyarrow: pip install 'trigflow[hub]'.

    Args:
        path: a .parquet or .arrow file, a folder of them, a folder of `save_to_disk`, or hf:owner/name, whose Parquet
            files are downloaded into the cache of huggingface_hub.
        split: of the files of a folder or of the hub, those whose names or folders say so.
        image_key: column of encoded images (default: the only one).
        label_key: column of integers or texts (default: the one that is declared as ClassLabel or named so, see
            `labels.NAMES`, if there is one; null: no labels).
        background: colour behind transparent pixels, a name or #rrggbb.

    Raises:
        UserError: a library or a file is missing, a file is damaged or foreign, a column is ambiguous, or no colour.
    """
    colour = Background(background)
    files = _download(path.removeprefix(HUB), split) if path.startswith(HUB) else _local(Path(path), split)
    schema = _schema(files[0])
    with _opened(files[0]) as pa:  # names may be no UTF-8
        image_key = _image_column(path, pa.types, schema, image_key)
        label = _label_column(path, pa.types, schema, label_key, image_key)
    _check_columns(files, schema, [image_key, *([label] if label else [])])
    count = sum(_count(file) for file in files)
    if not count:
        raise UserError(f"{path} is empty: it has no rows")
    labels = no_labels(label_key, "columns are", schema.names)
    if label:
        names = class_names(_feature(schema, label).get("names"))
        labels = labels_of(path, _labels(files, label, count), f"column {label}", names)
    name = path.rstrip("/").rsplit("/", 1)[-1].split(".")[0]
    entries = partial(_entries, files, image_key, colour)
    source = f"{path} ({image_key})"  # the column belongs to the cache's key
    return Collection(name, source, count, entries, labels, tuple(files), background=colour)


# Files


def _local(path: Path, split: str) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"there is no file or folder {path}")
    if (path / "dataset_dict.json").is_file():
        splits = sorted(entry.name for entry in path.iterdir() if entry.is_dir())
        if not splits:
            raise UserError(
                f"{path} has a dataset_dict.json, but no folders of splits: save the data set again"
            )
        _check_split(str(path), split, splits)
        path /= split
    found = sorted(path.rglob("*.parquet")) or sorted(path.glob("*.arrow"))
    names = [str(file.relative_to(path)) for file in found]
    chosen = _of_split(str(path), names, split)
    return [path / name for name in chosen]


def _of_split(source: str, names: list[str], split: str) -> list[str]:
    """The files of a split; all of them, if no name speaks of splits."""
    if not names:
        raise UserError(f"{source} holds no .parquet or .arrow files")
    splits = {name: _split_of(name, split) for name in names}
    known = sorted({found for found in splits.values() if found})
    if not known:
        return names
    _check_split(source, split, known)
    return [name for name in names if splits[name] == split]


def _check_split(source: str, split: str, known: list[str]) -> None:
    if split not in known:
        hint = did_you_mean(split, known)
        raise UserError(
            f"{source} has no split '{split}'{hint}; choose by data.split=NAME: {', '.join(known)}"
        )


def _split_of(name: str, wanted: str) -> str:
    """ "data/train-00000-of-00002.parquet", "default/train/0000.parquet" -> "train"; "" where no split is named."""
    words = [Path(name).stem.split("-")[0], *reversed(Path(name).parts[:-1])]
    return next((word for word in words if word in (*_SPLITS, wanted)), "")


def has_test_part(path: Path) -> bool:
    """Whether a folder has files of the split "test"; names on the hub are not looked up."""
    if str(path).startswith(HUB) or not path.is_dir():
        return False
    if (path / "dataset_dict.json").is_file():
        return (path / "test").is_dir()
    return any(_split_of(str(file.relative_to(path)), "test") == "test" for file in path.rglob("*.parquet"))


def _download(name: str, split: str) -> list[Path]:
    """The Parquet files of a data set on the hub, in the cache of huggingface_hub; said on stderr before it is done."""
    hub = _library("huggingface_hub", f"{HUB}{name}")
    if name.count("/") != 1:
        raise UserError(f"'{HUB}{name}' is no name on the hub: give hf:owner/name")
    try:
        revision, names = next(_parquet_names(hub, name), ("", []))
        chosen = _of_split(f"{HUB}{name}", names, split)
        print(f"downloading {len(chosen)} files of {HUB}{name} ({split})", file=sys.stderr)
        get = partial(hub.hf_hub_download, name, repo_type="dataset", revision=revision)
        return [Path(get(file)) for file in chosen]
    except UserError:
        raise
    except Exception as error:  # of the network, of the service, or of the library
        what = str(error).strip().split("\n")[0]
        raise UserError(f"cannot get {HUB}{name}: {type(error).__name__}: {what}") from None


def _parquet_names(hub: Any, name: str) -> Iterator[tuple[str, list[str]]]:
    """Its own Parquet files, else those that the hub makes of every data set."""
    for revision in ("main", "refs/convert/parquet"):
        names = hub.HfApi().list_repo_files(name, repo_type="dataset", revision=revision)
        if found := sorted(file for file in names if file.endswith(".parquet")):
            yield revision, found


def _library(name: str, needed_by: object) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{needed_by} needs the library {name}: pip install 'trigflow[hub]'") from None


# Tables


def _stream(pa: Any, path: Path) -> Any:
    """`save_to_disk` writes streams, other writers files."""
    try:
        return pa.ipc.open_stream(pa.memory_map(str(path)))
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(pa.memory_map(str(path)))
        return pa.RecordBatchReader.from_batches(
            file.schema, map(file.get_batch, range(file.num_record_batches))
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """pyarrow, whose complaints about the file become one line."""
    pa = _library("pyarrow", path)
    _library("pyarrow.parquet", path)  # pyarrow does not import it itself
    must_be_regular(path)
    complaint = f"{path} is no {path.suffix or 'Arrow'} file of a data set: it is damaged or foreign"
    with damage_told(path, complaint, (pa.ArrowException, *_DAMAGE)):
        yield pa


def _schema(path: Path) -> Any:
    with _opened(path) as pa:
        schema = pa.parquet.read_schema(path) if path.suffix == ".parquet" else _stream(pa, path).schema
        if len(set(schema.names)) < len(schema.names):
            raise UserError(f"{path} has two columns of one name: {schema.names}")
        return schema


def _batches(path: Path, columns: list[str]) -> Iterator[Any]:
    """The rows of a file, some at a time, of these columns."""
    with _opened(path) as pa:
        if path.suffix == ".parquet":
            with pa.parquet.ParquetFile(path) as file:
                yield from file.iter_batches(_ROWS, columns=columns)
            return
        for batch in _stream(pa, path):
            yield batch.select(columns)


def _values(path: Path, key: str) -> Iterator[Any]:
    """A column as Python's values.

    pyarrow believes the offsets that a file holds: those of a damaged one would be read wherever they lead, unless they
    are looked over before.
    """
    with _opened(path):
        for batch in _batches(path, [key]):
            batch.validate(full=True)
            for first in range(0, batch.num_rows, _ROWS):
                yield from batch[key].slice(first, _ROWS).to_pylist()


def _count(path: Path) -> int:
    if path.suffix != ".parquet":
        return sum(batch.num_rows for batch in _batches(path, []))
    with _opened(path) as pa:
        return int(pa.parquet.read_metadata(path).num_rows)


def _feature(schema: Any, key: str) -> dict[str, Any]:
    """What the writer said of a column: {"_type": "ClassLabel", "names": [...]}; {} if nothing."""
    try:
        found = json.loads(schema.metadata[b"huggingface"])["info"]["features"][key]
    except (ValueError, LookupError, TypeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _image_column(path: str, types: Any, schema: Any, key: str) -> str:
    found: list[str] = [field.name for field in schema if _holds_images(types, field.type)]
    if key:
        return _named(path, "images", key, found)
    if len(found) != 1:
        several = f"several columns of images, choose one by data.image_key=NAME: {found}"
        raise UserError(f"{path} has {several if found else 'no column of images'}")
    return found[0]


def _named(path: str, kind: str, key: str, found: list[str]) -> str:
    if key not in found:
        raise UserError(
            f"{path} has no column of {kind} '{key}'{did_you_mean(key, found)}; there are: {found}"
        )
    return key


def _holds_images(types: Any, kind: Any) -> bool:
    """Encoded bytes, alone or in {"bytes": ..., "path": ...}."""
    if types.is_struct(kind):
        return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _label_column(path: str, types: Any, schema: Any, given: str | None, image: str) -> str:
    """The column of labels; "" for none."""
    names: list[str] = [name for name in schema.names if name != image]
    declared = [name for name in names if _feature(schema, name).get("_type") == "ClassLabel"]
    key = key_of_labels(path, given, names, declared)
    if not key:
        return ""
    kind = schema.field(key).type
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not any(fits(kind) for fits in (types.is_integer, types.is_string, types.is_large_string)):
        raise UserError(
            f"{path}: its column '{key}' holds {kind}, and labels are integers or texts: write it as such, or "
            "do without labels by data.label_key=null"
        )
    return key


def _check_columns(files: list[Path], schema: Any, columns: list[str]) -> None:
    for file in files[1:]:
        other = _schema(file)
        for name in columns:
            if name not in other.names or other.field(name).type != schema.field(name).type:
                raise UserError(f"{file}: its column '{name}' is not that of {files[0].name}")


def _labels(files: list[Path], key: str, count: int) -> list[object]:
    labels = [label for file in files for label in _values(file, key)]
    where = files[0] if len(files) == 1 else files[0].parent
    if len(labels) != count:
        raise UserError(f"{where}: {count} rows, but {len(labels)} values of '{key}': it is damaged")
    if None in labels:
        raise UserError(f"{where}: row {labels.index(None)} has no '{key}': data.label_key=null ignores them")
    return labels


def _entries(files: list[Path], key: str, background: Background) -> Iterator[tuple[str, Read]]:
    for file in files:
        for row, value in enumerate(_values(file, key)):
            yield f"{file.name} row {row}", partial(_image, value, f"{file}: row {row}", background)


def _image(value: Any, where: str, background: Background) -> np.ndarray:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        raise DamagedPicture(f"{where} holds no bytes of an image, but at most the path of one")
    if len(content) > MOST_BYTES:
        raise DamagedPicture(f"{where} has {len(content)} bytes, more than {MOST_BYTES}")
    return decoded(content, where, background)
