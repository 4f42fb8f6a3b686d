"""Data sets, files of the user's, and the order in which a run sees them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from trigflow import recipes
from trigflow.commands import cli
from trigflow.core import oracles
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset, exact_teacher, load_data, rows
from trigflow.data.codecs import IdentityCodec, ImageCodec, VectorCodec
from trigflow.data.dataset import flipped
from trigflow.system import files
from trigflow.system.config import Component
from trigflow.system.errors import UserError


@pytest.mark.parametrize("name", ["digits", "mixture2d"])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_every_data_set_has_the_std_sigma_data(name: str, sigma_data: float) -> None:
    dataset = load_data(name, sigma_data)
    x_0 = dataset.codec.encode(dataset.data)
    assert dataset.name == name
    assert x_0.shape[1:] == dataset.data_shape
    assert x_0.double().square().mean().sqrt().item() == pytest.approx(sigma_data, rel=0.02)


def test_digits_are_stretched_to_255() -> None:
    dataset = load_data("digits")
    assert dataset.data.shape == (1797, 1, 8, 8)
    assert dataset.num_classes == 10 and dataset.labels is not None
    levels = dataset.data.unique().tolist()
    assert levels == [round(level * 255 / 16) for level in range(17)]


def test_mixture2d_is_its_oracle_and_its_size_an_option() -> None:
    dataset = load_data(Component("mixture2d", {"n": 1000}))
    assert dataset.data.shape == (1000, 2)
    teacher = exact_teacher(dataset)
    assert isinstance(teacher, oracles.GaussianMixture)
    nearest = torch.cdist(dataset.data.double(), teacher.means).min(1).values
    assert nearest.square().mean().sqrt() / teacher.stds[0, 0] == pytest.approx(2**0.5, rel=0.05)


def test_exact_teacher_of_points() -> None:
    points = Dataset("points", torch.randn(20, 3), None, 0, IdentityCodec(0.5))
    assert isinstance(exact_teacher(points), oracles.FiniteData)
    with pytest.raises(UserError, match="knows no labels"):
        exact_teacher(load_data("digits"))


# The order of a run


def test_each_pass_sees_every_sample_once() -> None:
    order = rows(3, 0, 50, 10).reshape(5, 10)
    assert (order.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in order}) == 5


def test_the_order_does_not_depend_on_the_cut() -> None:
    whole = rows(3, 0, 40, 7)
    assert torch.equal(whole, torch.cat([rows(3, first, 5, 7) for first in range(0, 40, 5)]))
    assert torch.equal(whole[13:], rows(3, 13, 27, 7))
    assert not torch.equal(whole, rows(4, 0, 40, 7))


# Files


def saved(folder: Path, **arrays: np.ndarray) -> str:
    path = folder / "mine.npz"
    np.savez(path, **arrays)
    return str(path)


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_images_with_labels(tmp_path: Path) -> None:
    path = saved(tmp_path, images=random_images(6, 3, 4, 4), labels=np.array([0, 1, 2, 0, 1, 2]))
    dataset = load_data(path)
    assert (dataset.name, dataset.num_classes, dataset.data_shape) == ("mine", 3, (3, 4, 4))
    assert isinstance(dataset.codec, ImageCodec)


def test_grey_images_and_vectors_without_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", random_images(6, 4, 4))
    assert load_data(str(tmp_path / "grey.npy")).data_shape == (1, 4, 4)
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(6, 5)))
    dataset = load_data(str(tmp_path / "vectors.npy"))
    assert dataset.labels is None and dataset.data.dtype == torch.float32
    assert isinstance(dataset.codec, VectorCodec)
    np.save(tmp_path / "other.npy", np.load(tmp_path / "vectors.npy").astype(">f8"))
    assert torch.equal(load_data(str(tmp_path / "other.npy")).data, dataset.data)
    assert cli.main(["data", "inspect", str(tmp_path / "other.npy")]) == 2  # no images, and said so


def test_key_chooses_an_array(tmp_path: Path) -> None:
    path = saved(tmp_path, train=random_images(6, 4, 4), test=random_images(2, 4, 4))
    assert len(load_data(Component("arrays", {"path": path, "key": "test"})).data) == 2
    with pytest.raises(UserError, match=r"several arrays; choose one by data\.key=NAME: train, test"):
        load_data(path)
    with pytest.raises(UserError, match="did you mean 'train'"):
        load_data(Component(path, {"key": "trian"}))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": np.zeros((0, 4, 4), np.uint8)}, "is empty"),
        ({"a": np.zeros((3, 4, 4), np.float32)}, "holds float32 of shape"),
        ({"a": np.full((3, 4), np.nan)}, "not finite"),
        ({"a": np.zeros((3, 4, 4), np.uint8)}, r"mine\.npz: the data does not vary"),
        ({"a": np.zeros((3, 4))}, r"mine\.npz: the data does not vary"),
        ({"a": random_images(3, 4, 4), "labels": np.array([0, 1])}, "3 samples, but labels of shape"),
        ({"a": random_images(3, 4, 4), "labels": np.array([0, 1, -1])}, "mine.npz has the label -1"),
        ({"a": random_images(3, 4, 4), "labels": np.array([0.5, 1, 2])}, "labels must be integers"),
        (
            {"a": random_images(3, 4, 4), "labels": np.array([0, 1, 2**62])},
            f"has the label {2**62}.*below 100000",
        ),
        ({"a": random_images(3, 4, 4), "labels": np.array([0, 1, 2**64 - 1], np.uint64)}, f"{2**64 - 1}"),
        ({"a": np.full((3, 4), 1e300)}, "not so in float32"),
        ({"labels": np.array([0, 1])}, "holds no arrays besides labels"),
        ({}, "holds no arrays"),
        ({"a": random_images(6, 8, 8, 3)}, r"channels last; wanted.*numpy\.moveaxis\(images, -1, 1\)"),
        ({"a": np.array([{}, {}])}, "no NumPy file"),
    ],
)
def test_bad_arrays_are_told(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_data(saved(tmp_path, **arrays))


def test_a_few_bytes_that_claim_to_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, images = tmp_path / "mine.npz", np.zeros((1000, 1, 32, 32), np.uint8)
    images[0] = 1
    np.savez_compressed(path, images=images)
    assert len(load_data(str(path)).data) == 1000
    monkeypatch.setattr(files, "_UNSUSPECTED_BYTES", 2**16)
    with pytest.raises(UserError, match=r"mine\.npz: .* bytes of images\.npy claim to hold"):
        load_data(str(path))


def test_foreign_and_missing_files_are_told(tmp_path: Path) -> None:
    for name, content in (("text.npy", b"hello"), ("empty.npy", b""), ("cut.npz", b"PK\x03\x04 cut")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="no NumPy file"):
            load_data(str(tmp_path / name))
    with pytest.raises(UserError, match="there is no file"):
        load_data(str(tmp_path / "nothing.npy"))
    with pytest.raises(UserError, match="did you mean 'digits'"):
        load_data("digit")


def npy(header: str) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def test_damaged_headers_and_foreign_members_are_told(tmp_path: Path) -> None:
    huge = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8), }\n"
    for name, header in (("huge.npy", huge), ("cut.npy", "{'descr': '|u1', 'shape': (1,\n")):
        (tmp_path / name).write_bytes(npy(header))
        with pytest.raises(UserError, match="no NumPy file"):
            load_data(str(tmp_path / name))
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match="no NumPy file"):
        load_data(str(tmp_path / "text.npz"))


@pytest.mark.filterwarnings("error")
def test_too_large_floats_give_no_warning(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not finite"):
        load_data(saved(tmp_path, a=np.full((3, 4), 1e300)))


def test_half_of_the_images_are_flipped_the_same_in_any_batch() -> None:
    x_0 = torch.arange(1000 * 2.0).reshape(1000, 1, 1, 2)
    seen = flipped(x_0, SampleRandom(3, torch.arange(1000)))
    turned = (seen == x_0.flip(-1)).all((1, 2, 3))
    assert 440 < int(turned.sum()) < 560 and torch.equal(seen[~turned], x_0[~turned])
    parts = [
        flipped(x_0[i : i + 7], SampleRandom(3, torch.arange(i, min(i + 7, 1000)))) for i in range(0, 1000, 7)
    ]
    assert torch.equal(torch.cat(parts), seen)


def test_flips_are_an_option_of_images() -> None:
    assert not load_data("digits").flip
    plain, flips = load_data("digits"), load_data(Component("digits", {"flip": True}))
    assert flips.flip and torch.equal(plain.data, flips.data)
    assert recipes.get("cifar10-teacher").data.options["flip"] is True
    assert "flip" not in recipes.get("cifar10-small-teacher").data.options


def test_flips_of_vectors_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "mixture2d-sct", "data.flip=true", "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert "data.flip = true: " in told and told.count("\n") == 1


def points() -> list[int]:
    return [1, 2]


def leaving() -> Dataset:
    raise SystemExit(1)


def test_mistakes_of_own_functions_are_told() -> None:
    with pytest.raises(
        UserError, match=r"data 'test_data:points' returns list: return a trigflow\.data\.Dataset"
    ):
        load_data("test_data:points")
    with pytest.raises(UserError, match="data 'test_data:leaving' cannot be made: SystemExit: 1"):
        load_data("test_data:leaving")
