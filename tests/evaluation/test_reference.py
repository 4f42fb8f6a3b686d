"""Statistics of real data: kept under a hash of all that they depend on, and made anew where that changes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_models import Student, gaussian_model
from test_data import random_images
from torch import Tensor, nn

from trigflow.data import Dataset, cache, digits, load_data
from trigflow.data.codecs import ImageCodec
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.metrics import Features, SampleSet, features, load_features
from trigflow.evaluation.metrics.classifier_net import Classifier
from trigflow.evaluation.metrics.dinov2 import DinoV2, Size, load_dinov2
from trigflow.evaluation.metrics.features import of_classifier
from trigflow.evaluation.reference import Reference, data_digest, reference, reference_key
from trigflow.system.tensors import read_state, write_state


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the cache, not made yet."""
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images(count: int = 40, labels: bool = True) -> Dataset:
    data = torch.from_numpy(random_images(count, 1, 8, 8))
    found = torch.arange(count) % 10 if labels else None
    return Dataset("images", data, found, 10 if labels else 0, ImageCodec.measure(data))


def counted(known: Features) -> tuple[Features, list[int]]:
    """The same features, and how many samples were given to them."""
    seen: list[int] = []

    def extract(samples: Tensor) -> Tensor:
        seen.append(len(samples))
        return known.extract(samples)

    return dataclasses.replace(known, extract=extract), seen


def same(a: Reference, b: Reference) -> bool:
    """Bit for bit."""
    return (
        a.halves == b.halves
        and a.data.alone == b.data.alone
        and all(torch.equal(x, y) for x, y in zip(tensors(a.data), tensors(b.data), strict=True))
    )


def tensors(data: SampleSet) -> list[Tensor]:
    found = [data.moments.mean, data.moments.cov, data.vectors, data.radii, data.labels]
    return [torch.tensor(data.moments.num), *(one for one in found if one is not None)]


@pytest.mark.parametrize("name", ["pixels", "digits-classifier"])
def test_the_second_call_computes_no_features(name: str, kept: Path) -> None:
    known, seen = counted(load_features(name))
    first = reference(images(), known, 3)
    assert sum(seen) == 40 and len(list(kept.iterdir())) == 1
    again = reference(images(), known, 3)
    assert sum(seen) == 40 and same(first, again)
    assert first.data.logits is None, "they would be gigabytes of a large set"
    assert (first.data.alone["label_agreement"] is None) == (name == "pixels")


def test_evaluation_asks_the_cache() -> None:
    data = Dataset("points", torch.randn(50, 2), None, 0, gaussian_model(Student).codec)
    settings: dict[str, Any] = {"num": 64, "seeds": 1, "teacher": "none", "data": data, "progress": False}
    scores = [
        evaluate(gaussian_model(Student), steps=[1], **settings)["students"][0]["fds"] for _ in range(2)
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize(
    "damage",
    [lambda whole: b"", lambda whole: b"hello", lambda whole: whole[:-1], lambda whole: whole[:-1] + b"X"],
    ids=["empty", "foreign", "cut", "changed"],
)
def test_a_damaged_file_is_made_anew(damage: Callable[[bytes], bytes], kept: Path) -> None:
    known, seen = counted(load_features("pixels"))
    first = reference(images(), known, 3)
    (file,) = kept.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert same(reference(images(), known, 3), first) and sum(seen) == 80
    assert same(reference(images(), known, 3), first) and sum(seen) == 80


def test_an_incomplete_file_is_made_anew(kept: Path) -> None:
    known, seen = counted(load_features("digits-classifier"))
    first = reference(images(), known, 3)
    (file,) = kept.iterdir()
    found, state = read_state(file)
    write_state(file, {name: tensor for name, tensor in found.items() if name != "radii"}, state)
    assert same(reference(images(), known, 3), first) and sum(seen) == 80


def test_a_cache_that_cannot_be_written_is_no_trouble(kept: Path) -> None:
    kept.write_text("a file in the way")
    known, seen = counted(load_features("pixels"))
    assert same(reference(images(), known, 3), reference(images(), known, 3)) and sum(seen) == 80


def test_features_of_unknown_identity_are_not_kept(kept: Path) -> None:
    reference(images(), Features("own", lambda samples: samples.flatten(1).float()), 3)
    assert not kept.exists()


# The key


def key(dataset: Dataset | None = None, known: Features | None = None, splits: int = 3) -> str:
    return reference_key(dataset or images(), known or load_features("pixels"), splits)


def test_equal_data_and_features_have_one_key() -> None:
    assert key() == key()
    renamed = dataclasses.replace(images(), name="another")
    assert key(renamed) == key()


def test_other_data_has_another_key() -> None:
    data = images()
    changed = data.data.clone()
    changed[-1, 0, -1, -1] ^= 1
    labels = torch.arange(40).roll(1) % 10
    others = [
        dataclasses.replace(data, data=changed),
        dataclasses.replace(data, data=data.data.flip(0)),
        dataclasses.replace(data, data=data.data.view(40, 1, 4, 16)),
        dataclasses.replace(data, labels=labels),
        dataclasses.replace(data, labels=None, num_classes=0),
        dataclasses.replace(data, num_classes=11),
    ]
    assert len({key(), *map(key, others), key(splits=4)}) == 8


def test_other_weights_have_another_key() -> None:
    nets = [Classifier((1, 8, 8), 10).eval() for _ in range(2)]
    known = [of_classifier("one", net) for net in nets]
    wider = of_classifier("one", Classifier((1, 8, 8), 10, mean=0.0).eval())
    assert len({key(known=one) for one in (*known, wider)}) == 3
    before = key(known=known[0])
    nets[0].head.bias.data.add_(1)
    assert key(known=known[0]) != before


def test_another_resize_has_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, with images brought to 28 or 42 pixels a side."""
    path = tmp_path / "weights.pt"
    torch.save(DinoV2(Size(12, 1, 3, image=28)).state_dict(), path)
    found = []
    for side in (28, 42, 28):
        size = Size(12, 1, 3, image=side)
        entry = dataclasses.replace(features.PUBLISHED["dinov2-vits14"], load=filled_by(size))
        monkeypatch.setitem(features.PUBLISHED, "dinov2-vits14", entry)
        found.append(key(known=load_features(f"dinov2-vits14={path}")))
    assert found[0] == found[2] != found[1]


def filled_by(size: Size) -> Callable[[Path, str], nn.Module]:
    return lambda path, wanted: load_dinov2(path, wanted, size)


class Scaled(nn.Module):
    """Features of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, samples: Tensor) -> Tensor:
        return samples.flatten(1).float() * self.scale


def test_modules_of_the_user_are_known_by_their_text_and_weights(kept: Path) -> None:
    known = load_features(f"{__name__}:Scaled")
    assert "return samples.flatten(1)" in known.identity and known.network is not None
    before = key(known=known)
    next(known.network.parameters()).fill_(2)
    assert key(known=known) != before
    typed = type("Typed", (nn.Module,), {"forward": lambda self, x: x, "__module__": "nowhere"})
    assert features._code_of(typed()) == ""


def test_mapped_data_is_hashed_as_data_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "MAPPED_BYTES", 100)
    monkeypatch.setattr("trigflow.evaluation.reference._CHUNK_BYTES", 300)
    np.save(tmp_path / "a.npy", images().data.numpy())
    mapped = load_data(str(tmp_path / "a.npy"))
    monkeypatch.undo()
    assert mapped.mapped and data_digest(mapped) == data_digest(images(labels=False))
    assert data_digest(digits()) != data_digest(mapped)
