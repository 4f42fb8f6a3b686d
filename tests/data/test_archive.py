"""EDM's zip archives: read as they are, refused in one line where they are not."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from trigflow.data import Dataset, load_data
from trigflow.system.errors import UserError

REAL = Path(__file__).parents[3] / "shared" / "data" / "cifar10-test-32x32.zip"
RGB = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
NAMES = [f"{row // 4:05d}/img{row:08d}" for row in range(6)]
LABELS = json.dumps({"labels": [[f"{name}.png", row % 3] for row, name in enumerate(NAMES)]}).encode()


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def npy(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, image)
    return buffer.getvalue()


PNGS = {f"{name}.png": png(image) for name, image in zip(NAMES, RGB, strict=True)}


def archive(folder: Path, members: dict[str, bytes]) -> Path:
    path = folder / "images.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in reversed(members):  # the order of the names counts, not that of the archive
            file.writestr(name, members[name])
    return path


def load(path: Path) -> Dataset:
    return load_data(str(path))


def test_pictures_with_labels(tmp_path: Path) -> None:
    dataset = load(archive(tmp_path, PNGS | {"dataset.json": LABELS, "README.txt": b"hello"}))
    assert torch.equal(dataset.data, torch.from_numpy(RGB)) and dataset.name == "images"
    assert dataset.labels is not None and dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert dataset.num_classes == 3


@pytest.mark.parametrize("labels", [{}, {"dataset.json": b'{"labels": null}'}, {"dataset.json": b"{}"}])
def test_grey_pictures_and_arrays_without_labels(tmp_path: Path, labels: dict[str, bytes]) -> None:
    grey = RGB[:, :1]
    for write, suffix in ((png, "png"), (npy, "npy")):
        members = {f"{name}.{suffix}": write(image) for name, image in zip(NAMES, grey, strict=True)}
        dataset = load(archive(tmp_path, members | labels))
        assert torch.equal(dataset.data, torch.from_numpy(grey)) and dataset.labels is None


FIRST = f"{NAMES[0]}.png"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "holds no images"),
        ({"notes.txt": b"hello"}, "holds no images"),
        (PNGS | {FIRST: b""}, f"{FIRST} is damaged"),
        (PNGS | {FIRST: PNGS[FIRST][:60]}, f"{FIRST} is damaged"),
        (PNGS | {FIRST: b"GIF89a"}, f"{FIRST} is damaged"),
        (PNGS | {"a.npy": npy(RGB[0])[:90]}, r"a\.npy is damaged"),
        (PNGS | {"a.npy": npy(np.array([None]))}, r"a\.npy is damaged"),
        (PNGS | {"a.npy": npy(RGB[0].astype(float))}, r"a\.npy holds float64"),
        (PNGS | {"z.png": png(RGB[0, :, :3])}, r"z\.png has the shape"),
        (PNGS | {"dataset.json": b"{"}, "damaged or foreign"),
        (PNGS | {"dataset.json": b"[1]"}, "damaged or foreign"),
        (PNGS | {"dataset.json": b'{"labels": [1, 2]}'}, "damaged or foreign"),
        (PNGS | {"dataset.json": b'{"labels": []}'}, "has no label"),
        (PNGS | {"dataset.json": LABELS.replace(b"1.png", b"0.png")}, "several labels for one name"),
        (PNGS | {"dataset.json": LABELS.replace(b", 2]", b", -1]")}, "has the label -1"),
        (PNGS | {"dataset.json": LABELS.replace(b", 2]", b", true]")}, "such as True"),
        (PNGS | {"dataset.json": LABELS.replace(b", 2]", b', "cat"]')}, "both numbers and texts"),
    ],
)
def test_foreign_and_damaged_contents_are_refused_in_one_line(
    tmp_path: Path, members: dict[str, bytes], words: str
) -> None:
    with pytest.raises(UserError, match=words) as caught:
        load(archive(tmp_path, members))
    assert "\n" not in str(caught.value) and "images.zip" in str(caught.value)


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    path = archive(tmp_path, PNGS)
    whole = path.read_bytes()
    middle = len(PNGS[FIRST]) // 2 + 60
    for content in (b"", b"no archive", whole[:-30], whole[: len(whole) // 2], flipped(whole, middle)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"images\.zip"):
            load(path)
    path.unlink()
    with pytest.raises(UserError, match="there is no file"):
        load(path)


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


def test_the_real_archive() -> None:
    if not REAL.is_file():
        pytest.skip("CIFAR-10's archive is not here")
    dataset = load(REAL)
    assert dataset.data.shape == (10_000, 3, 32, 32) and dataset.num_classes == 10
    assert dataset.labels is not None and dataset.labels.bincount().tolist() == [1000] * 10
