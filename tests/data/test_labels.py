"""Labels: what names them in each format, what is refused, and the line that tells what was taken (docs/data.md)."""

from __future__ import annotations

import io
import json
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trigflow.commands import cli
from trigflow.data import Dataset, labels, load_data
from trigflow.data.codecs import IdentityCodec
from trigflow.data.labels import MOST_CLASSES, NAMES, check_order, natural
from trigflow.system.config import Component
from trigflow.system.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
Columns = Mapping[str, list[Any]]


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


PNGS = [png(image) for image in IMAGES]


# Writers: images and columns of values, one of which may be the labels


def write_npz(path: Path, columns: Columns) -> Path:
    np.savez(path / "a.npz", images=IMAGES, **{key: np.array(values) for key, values in columns.items()})
    return path / "a.npz"


def write_parquet(path: Path, columns: Columns) -> Path:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"image": pa.array(PNGS, pa.binary()), **columns}), path / "a.parquet")
    return path / "a.parquet"


def write_tar(path: Path, columns: Columns) -> Path:
    """NAME.cls for the column "cls", else NAME.json."""
    with tarfile.open(path / "a.tar", "w") as archive:
        for row, content in enumerate(PNGS):
            own = {key: values[row] for key, values in columns.items()}
            members = {"png": content}
            if "cls" in own:
                members["cls"] = str(own.pop("cls")).encode()
            if own:
                members["json"] = json.dumps(own).encode()
            for suffix, body in members.items():
                member = tarfile.TarInfo(f"{row}.{suffix}")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return path / "a.tar"


def table(labels: list[Any], above: str = "", **more: Any) -> bytes:
    return json.dumps(
        {"labels": [[f"{above}{row}.png", one] for row, one in enumerate(labels)], **more}
    ).encode()


def write_zip(path: Path, columns: Columns, **more: Any) -> Path:
    with zipfile.ZipFile(path / "a.zip", "w") as archive:
        for row, content in enumerate(PNGS):
            archive.writestr(f"{row}.png", content)
        for values in columns.values():
            archive.writestr("dataset.json", table(values, **more))
    return path / "a.zip"


def write_pictures(path: Path, columns: Columns) -> Path:
    (path / "a").mkdir()
    for row, content in enumerate(PNGS):
        (path / "a" / f"{row}.png").write_bytes(content)
    for values in columns.values():
        (path / "a" / "dataset.json").write_bytes(table(values))
    return path / "a"


def write_folders(path: Path, columns: Columns) -> Path:
    for values in columns.values():
        for row, label in enumerate(values):
            (path / "a" / str(label)).mkdir(parents=True, exist_ok=True)
            (path / "a" / str(label) / f"{row}.png").write_bytes(PNGS[row])
    return path / "a"


WRITERS: dict[str, Callable[..., Path]] = {
    "npz": write_npz,
    "zip": write_zip,
    "pictures": write_pictures,
    "folders": write_folders,
    "parquet": write_parquet,
    "tar": write_tar,
}
KEYED = ("npz", "parquet", "tar")  # those with a name for the labels, and other columns
NUMBERED = ("npz", "zip", "pictures", "parquet", "tar")  # those whose labels are numbers or texts
GIVEN = [0, 1, 2, 0, 1, 2]


def load(path: Path, **options: Any) -> Dataset:
    return load_data(Component(str(path), options))


def labels_in(dataset: Dataset) -> list[int]:
    assert dataset.labels is not None
    return dataset.labels.tolist()


# The table of docs/data.md


@pytest.mark.parametrize("kind", KEYED)
@pytest.mark.parametrize("name", [*NAMES, "Label"])
def test_named_labels(kind: str, name: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, {"index": list(range(6)), name: GIVEN})
    dataset = load(path, key="images") if kind == "npz" else load(path)
    assert labels_in(dataset) == GIVEN and dataset.num_classes == 3
    assert re.fullmatch(f"labels: 3 classes from .*{name}", dataset.labelling.line)


@pytest.mark.parametrize("kind", ["zip", "pictures"])
def test_labels_in_a_table(kind: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[kind](tmp_path, {"label": GIVEN}))
    assert labels_in(dataset) == GIVEN and dataset.labelling.line == "labels: 3 classes from dataset.json"


def test_labels_by_folder(tmp_path: Path) -> None:
    dataset = load(write_folders(tmp_path, {"label": list("cabcab")}))
    assert labels_in(dataset) == [0, 0, 1, 1, 2, 2] and dataset.classes == ("a", "b", "c")
    assert dataset.labelling.line == "labels: 3 classes from folders"


@pytest.mark.parametrize("kind", KEYED)
def test_other_columns_are_no_labels(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, {"index": list(range(6)), "width": [4] * 6})
    dataset = load(path, key="images") if kind == "npz" else load(path)
    assert dataset.labels is None and dataset.num_classes == 0
    assert re.match("no labels: .*index, width$", dataset.labelling.line)


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "folders"])
def test_no_labels_at_all(kind: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[kind](tmp_path, {}))
    assert dataset.labels is None and dataset.labelling.line.startswith("no labels: ")


def test_an_empty_class_folder(tmp_path: Path) -> None:
    (write_folders(tmp_path, {"label": GIVEN}) / "9").mkdir()
    with pytest.raises(UserError, match="9 holds no pictures: remove it"):
        load(tmp_path / "a")


@pytest.mark.parametrize("kind", KEYED)
def test_a_key_that_is_absent(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, {"label": GIVEN, "width": [4, 0, 1, 0, 1, 2]})
    with pytest.raises(UserError, match=r"no labels 'lable' \(did you mean 'label'\?\); there are: .*width"):
        load(path, label_key="lable", **({"key": "images"} if kind == "npz" else {}))
    chosen = load(path, label_key="width", **({"key": "images"} if kind == "npz" else {}))
    assert labels_in(chosen) == [4, 0, 1, 0, 1, 2]
    none = load(path, label_key=None, **({"key": "images"} if kind == "npz" else {}))
    assert none.labels is None and none.labelling.line == "no labels: left out by data.label_key=null"


@pytest.mark.parametrize("kind", ["zip", "pictures", "folders"])
def test_formats_without_keys(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="label_key"):
        load(WRITERS[kind](tmp_path, {"label": GIVEN}), label_key="label")


@pytest.mark.parametrize("kind", NUMBERED)
def test_gaps_are_told_and_bounded_by_the_number_of_classes(kind: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[kind](tmp_path, {"label": [0, 7, 0, 7, 0, 7]}))
    assert labels_in(dataset) == [0, 7, 0, 7, 0, 7] and dataset.num_classes == 8
    assert dataset.labelling.unseen == (1, 2, 3, 4, 5, 6)
    assert "8 classes from" in dataset.labelling.line
    assert "; 6 without samples (1, 2, 3, 4, 5, ...), not sampled unless asked for" in dataset.labelling.line


@pytest.mark.parametrize("kind", NUMBERED)
def test_texts_are_classes_in_natural_order(kind: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[kind](tmp_path, {"label": ["c10", "c2", "c2", "a", "c10", "a"]}))
    assert labels_in(dataset) == [2, 1, 1, 0, 2, 0] and dataset.classes == ("a", "c2", "c10")


@pytest.mark.parametrize("kind", NUMBERED)
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.0, 1.0, 2.0, 0.0, 1.0, 2.0], r"such as 0\.0|float64|double"),
        ([True, False, True, False, True, False], "such as True|bool"),
        ([0, 1, 2, 0, 1, -1], "has the label -1"),
        ([0, 1, 2, 0, 1, MOST_CLASSES], f"has the label {MOST_CLASSES}.* below {MOST_CLASSES}"),
        (["a", "b", "", "a", "b", "c"], "such as ''"),
    ],
)
def test_what_is_refused(kind: str, values: list[Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(WRITERS[kind](tmp_path, {"label": values}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KEYED)
def test_several_that_may_be_labels(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, {"label": GIVEN, "class": [1, 0, 0, 0, 1, 1]})
    with pytest.raises(UserError, match=r"choose one by data\.label_key=NAME, or none by null: label, class"):
        load(path)
    assert labels_in(load(path, label_key="class")) == [1, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("kind", ["zip", "folders", "parquet"])
def test_labels_that_are_left_out(kind: str, tmp_path: Path) -> None:
    dataset = load(WRITERS[kind](tmp_path, {"label": list("abcabc")}), labels=False)
    assert dataset.labels is None and dataset.classes == ()
    assert dataset.labelling.line == "no labels: left out by data.labels=false"


# Of single formats


def unpacked(path: Path, classes: int = 5) -> Path:
    """Twenty pictures in two folders, as an archive of EDM's lays them out."""
    names = [f"{row // 10:05d}/img{row:08d}.png" for row in range(20)]
    for row, name in enumerate(names):
        (path / "e" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "e" / name).write_bytes(PNGS[row % 6])
    labels = [[name, row % classes] for row, name in enumerate(names)]
    (path / "e" / "dataset.json").write_text(json.dumps({"labels": labels}))
    return path / "e"


def test_an_unpacked_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = unpacked(tmp_path)
    dataset = load(path)
    assert labels_in(dataset) == [row % 5 for row in range(20)] and dataset.num_classes == 5
    assert cli.main(["data", "inspect", str(path)]) == 0
    shown = capsys.readouterr()
    assert (
        shown.err == "labels: 5 classes from dataset.json\n"
        and "5 (0: 4, 1: 4, 2: 4, 3: 4, 4: 4)" in shown.out
    )
    assert labels_in(load(path / "00001")) == [row % 5 for row in range(10, 20)]
    (path / "dataset.json").write_text('{"labels": null}')
    assert load(path).labelling.line == "no labels: dataset.json has none"
    (path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match=r"dataset\.json is damaged or foreign"):
        load(path)
    (path / "dataset.json").write_text('{"name": "of something else"}')
    assert load(path).labelling.line == "labels: 2 classes from folders"


def test_a_table_above_that_is_of_other_pictures(tmp_path: Path) -> None:
    path = write_folders(tmp_path, {"label": GIVEN})
    (tmp_path / "dataset.json").write_bytes(table(GIVEN, "other/"))
    assert load(path).labelling.line == "labels: 3 classes from folders"


def test_a_table_in_the_only_folder_and_one_too_many(tmp_path: Path) -> None:
    path = write_pictures(tmp_path / "", {"label": GIVEN})
    assert labels_in(load(tmp_path)) == GIVEN
    (tmp_path / "dataset.json").write_bytes(table(GIVEN, "a/"))
    with pytest.raises(UserError, match=r"holds several dataset\.json"):
        load(tmp_path)
    (path / "dataset.json").unlink()
    assert labels_in(load(tmp_path)) == GIVEN
    (tmp_path / "dataset.json").write_bytes(table(GIVEN[:5], "a/"))
    with pytest.raises(UserError, match=r"has no label for a/5\.png"):
        load(tmp_path)


def test_a_table_within_an_archive(tmp_path: Path) -> None:
    """As of a folder that was packed with its own name."""
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for row, content in enumerate(PNGS):
            archive.writestr(f"x/00000/{row}.png", content)
        archive.writestr("x/dataset.json", table(GIVEN, "00000/"))
    assert labels_in(load(tmp_path / "a.zip")) == GIVEN


def test_folders_sort_naturally(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / "a" / str(number)).mkdir(parents=True)
        (tmp_path / "a" / str(number) / "0.png").write_bytes(PNGS[number % 6])
    dataset = load(tmp_path / "a")
    assert dataset.classes == tuple(map(str, range(12))) and labels_in(dataset) == list(range(12))


@pytest.mark.parametrize(
    "names", [["a2", "a10", "b"], ["01", "1", "2"], ["a", "a1", "a1b", "b"], ["2", "9" * 5000], ["B", "a"]]
)
def test_natural_order(names: list[str]) -> None:
    assert sorted(reversed(names), key=natural) == names


def test_labels_in_files_of_text(tmp_path: Path) -> None:
    assert labels_in(load(write_tar(tmp_path, {"cls": ["0001", "0", "2", "1", "0", " 2\n"]}))) == [
        1,
        0,
        2,
        1,
        0,
        2,
    ]
    assert load(write_tar(tmp_path, {"cls": list("bababa")})).classes == ("a", "b")
    assert labels_in(load(write_tar(tmp_path, {"cls": [f"\ufeff{one}" for one in GIVEN]}))) == GIVEN
    for odd, words in (
        ("", "holds no label"),
        ("1.5", r"such as 1\.5"),
        ("-1", "label -1"),
        ("true", "such as True"),
    ):
        with pytest.raises(UserError, match=words):
            load(write_tar(tmp_path, {"cls": [odd] * 6}))
    with pytest.raises(UserError, match="both numbers and texts"):
        load(write_tar(tmp_path, {"cls": ["1", "a"] * 3}))


def test_labels_told_twice_are_one(tmp_path: Path) -> None:
    assert (
        labels_in(load(write_tar(tmp_path, {"cls": GIVEN, "label": GIVEN, "name": list("abcabc")}))) == GIVEN
    )
    with pytest.raises(UserError, match="several that may be labels"):
        load(write_tar(tmp_path, {"cls": GIVEN, "class": list("abcabc")}))


def test_texts_that_are_no_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "MOST_CLASSES", 5)
    with pytest.raises(UserError, match="column label are 6 different texts, above 5 classes"):
        load(write_parquet(tmp_path, {"label": list("abcdef")}))


def test_a_shard_with_a_bare_sample(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"5 has no label \('class'\), though others have"):
        load(write_tar(tmp_path, {"class": [*GIVEN[:5], None]}))


def test_names_of_columns_that_are_declared(tmp_path: Path) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"breed": {"_type": "ClassLabel", "names": ["cat", "dog", "owl", "elk"]}}
    data = pa.table({"image": pa.array(PNGS, pa.binary()), "breed": GIVEN, "id": GIVEN})
    info = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(data.replace_schema_metadata(info), tmp_path / "a.parquet")
    dataset = load(tmp_path / "a.parquet")
    assert dataset.classes == ("cat", "dog", "owl", "elk") and dataset.labelling.unseen == (3,)


def test_texts_in_a_dictionary(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = write_parquet(tmp_path, {"class": pa.array(list("bababa")).dictionary_encode()})
    assert labels_in(load(path)) == [1, 0] * 3


def test_cifar10_has_names(tmp_path: Path) -> None:
    batch = {
        b"data": np.random.default_rng(0).integers(0, 256, (3, 3072), dtype=np.uint8),
        b"labels": [3, 3, 9],
    }
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(batch, protocol=3))
    dataset = load(tmp_path)
    assert dataset.classes[3] == "cat" and dataset.num_classes == 10 and len(dataset.labelling.unseen) == 8


def test_mnist_has_ten_classes(tmp_path: Path) -> None:
    for name, values in (("images-idx3", IMAGES[:, 0]), ("labels-idx1", np.array([0, 7] * 3, np.uint8))):
        sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
        (tmp_path / f"train-{name}-ubyte").write_bytes(
            bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()
        )
    dataset = load(tmp_path)
    assert dataset.labelling.line.startswith(
        "labels: 10 classes from train-labels-idx1-ubyte; 8 without samples"
    )
    with pytest.raises(UserError, match="label_key"):
        load(tmp_path, label_key="label")


def test_an_array_has_no_names(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    assert load(tmp_path / "a.npy").labelling.line == "no labels: the file is one array"
    with pytest.raises(UserError, match="without names"):
        load(tmp_path / "a.npy", label_key="label")


def test_labels_of_own_data_sets() -> None:
    for odd in (torch.tensor([True, False]), torch.tensor([0.0, 1.0])):
        with pytest.raises(UserError, match="labels must be whole numbers"):
            Dataset("own", torch.randn(2, 3), odd, 2, IdentityCodec(0.5))


# Names


@pytest.mark.parametrize("labels", [list("cabcab"), [f"c{n}" for n in (10, 2, 2, 10, 1, 1)]])
def test_names_go_into_an_archive_and_back(
    labels: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = write_folders(tmp_path, {"label": labels}), tmp_path / "out.zip"
    assert cli.main(["data", "prepare", str(path), "--out", str(out)]) == 0
    assert capsys.readouterr().err.endswith("labels: 3 classes from folders\n")
    before, after = load(path), load(out)
    assert before.classes == after.classes and labels_in(before) == labels_in(after)
    with zipfile.ZipFile(out) as archive:
        assert set(json.loads(archive.read("dataset.json"))) == {"labels", "classes"}


def test_names_without_samples_count(tmp_path: Path) -> None:
    dataset = load(write_zip(tmp_path, {"label": GIVEN}, classes=["a", "b", "c", "d"]))
    assert dataset.num_classes == 4 and dataset.labelling.unseen == (3,)
    with pytest.raises(UserError, match=r"has the label 2: .* below 2"):
        load(write_zip(tmp_path, {"label": GIVEN}, classes=["a", "b"]))
    assert load(write_zip(tmp_path, {"label": GIVEN}, classes=[1, 2])).classes == ()


def test_names_do_not_reach_the_terminal_raw(tmp_path: Path) -> None:
    assert "\x1b" not in load(write_npz(tmp_path, {"a\x1b[2J": GIVEN}), key="images").labelling.line


def test_classes_are_not_exchanged() -> None:
    check_order("m", (), ("a", "b"), "folders")
    check_order("m", (), ("a2", "a10"), "dataset.json")
    check_order("m", ("a", "b", "c"), ("a", "x"), "folders")
    with pytest.raises(UserError, match="m has the class 'a2' as number 1, as earlier versions"):
        check_order("m", (), ("a2", "a10"), "folders")
    with pytest.raises(UserError, match="m has the class 'a' as number 1, and the data as 0"):
        check_order("m", ("b", "a"), ("a", "b"), "dataset.json")
