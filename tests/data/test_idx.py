"""MNIST's files: read as they are, refused in one line where they are not."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from trigflow.data import Dataset, load_data
from trigflow.data.formats.idx import read_idx
from trigflow.system.config import Component
from trigflow.system.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "mnist"
IMAGES = np.random.default_rng(0).integers(0, 256, (20, 5, 4), dtype=np.uint8)
LABELS = (np.arange(20) % 10).astype(np.uint8)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(LABELS))
    (tmp_path / "t10k-images.idx3-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES[:10])))
    (tmp_path / "t10k-labels.idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:10])))
    return tmp_path


def load(folder: Path, **options: str) -> Dataset:
    return load_data(Component("mnist", {"folder": str(folder), **options}))


def test_images_and_labels(folder: Path) -> None:
    dataset = load(folder)
    assert torch.equal(dataset.data[:, 0], torch.from_numpy(IMAGES))
    assert dataset.labels is not None and dataset.labels.tolist() == LABELS.tolist()
    assert dataset.num_classes == 10
    assert torch.equal(load(folder, split="test").data, dataset.data[:10])
    assert torch.equal(load_data(str(folder)).data, dataset.data)


GOOD = idx(IMAGES)
PACKED = gzip.compress(GOOD, mtime=0)  # the moment would stand in the names of the tests


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no IDX file"),
        (GOOD[:3], "is no IDX file"),
        (GOOD[:10], "is no IDX file"),
        (b"PK\3\4" + GOOD, "is no IDX file"),
        (idx(LABELS), "is no IDX file"),
        (idx(IMAGES.astype(np.float32), kind=0x0D), "is no IDX file"),
        (GOOD[:-1], "it holds 399 bytes, not 400"),
        (GOOD + b"x", "it holds more than 400 bytes, not 400"),
        (idx(IMAGES)[:4] + b"\xff" * 12, "16 bytes cannot hold"),
        (idx(IMAGES[:0]), "they do not belong together"),
        (idx(IMAGES[:19]), "they do not belong together"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(folder: Path, content: bytes, words: str) -> None:
    (folder / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(UserError, match=words) as caught:
        load(folder)
    assert "\n" not in str(caught.value) and "train-images-idx3-ubyte" in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", PACKED[:-9], PACKED[:30], b"no gzip", PACKED[:60] + b"??" + PACKED[62:]]
)
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"images\.gz is"):
        read_idx(path, 3)


def test_no_more_is_decompressed_than_the_header_says(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(GOOD + bytes(2**20)))
    with pytest.raises(UserError, match="it holds more than 400 bytes"):
        read_idx(path, 3)
    path.write_bytes(gzip.compress(GOOD[:4] + struct.pack(">3I", 2**20, 2**10, 2**10)))
    with pytest.raises(UserError, match="bytes cannot hold 1099511627776"):
        read_idx(path, 3)


def test_empty_and_foreign_labels_and_missing_files(folder: Path) -> None:
    (folder / "train-labels-idx1-ubyte").write_bytes(idx(LABELS + 10))
    with pytest.raises(UserError, match="holds the label 19"):
        load(folder)
    for name, array in (("images-idx3", IMAGES[:0]), ("labels-idx1", LABELS[:0])):
        (folder / f"train-{name}-ubyte").write_bytes(idx(array))
    with pytest.raises(UserError, match="is empty"):
        load(folder)
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="holds no train-labels-idx1-ubyte"):
        load(folder)
    with pytest.raises(UserError, match="split"):
        load(folder, split="valid")


def test_the_real_files() -> None:
    if not REAL.is_dir():
        pytest.skip("MNIST's files are not here")
    train, test = load(REAL), load(REAL, split="test")
    assert train.data.shape == (60_000, 1, 28, 28) and test.data.shape == (10_000, 1, 28, 28)
    assert train.labels is not None and train.labels.bincount().tolist()[:3] == [5923, 6742, 5958]
    pixels = train.data.double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
