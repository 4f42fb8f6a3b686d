"""Training of the small classifier."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import trigflow
from trigflow.data import Dataset, digits, mixture2d
from trigflow.evaluation.metrics.classifier_net import CARD, WEIGHTS, load_classifier
from trigflow.evaluation.metrics.classifier_training import train_classifier
from trigflow.system.errors import UserError


def few_digits(n: int = 500) -> Dataset:
    data = digits()
    assert data.labels is not None
    return dataclasses.replace(data, data=data.data[:n], labels=data.labels[:n])


def test_it_learns_and_tells_the_truth_about_it(tmp_path: Path) -> None:
    """The accuracy in the card is that of the weights beside it on images that they have not seen."""
    data = few_digits(800)
    accuracy = train_classifier(data, tmp_path, seed=3, epochs=12, progress=False)
    net, card = load_classifier(tmp_path)
    assert accuracy > 0.9
    assert card["score"] == {"held_out_accuracy": round(accuracy, 5), "num_held_out": 160}
    assert card["training"] == {"data": "digits", "seed": 3, "epochs": 12, "num_train": 640}
    torch.manual_seed(3)
    held_out = torch.randperm(800)[:160]
    assert data.labels is not None
    top = net(data.data[held_out]).argmax(1)
    assert float((top == data.labels[held_out]).float().mean()) == pytest.approx(accuracy)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_classifier(few_digits(200), tmp_path / name, seed=seed, epochs=1, progress=False)
    a, b, c = ((tmp_path / name / WEIGHTS).read_bytes() for name in "abc")
    assert a == b != c
    assert torch.equal(state, torch.get_rng_state())
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize(("name", "num"), [("digits-classifier", 1_797), ("mnist-classifier", 60_000)])
def test_the_shipped_classifiers_meet_their_promises(name: str, num: int) -> None:
    folder = Path(trigflow.__path__[0]) / "models" / "pretrained" / name
    card = json.loads((folder / CARD).read_text())
    assert card["score"]["held_out_accuracy"] >= 0.99
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 500_000
    assert card["training"]["num_train"] + card["score"]["num_held_out"] == num


def test_mistakes(tmp_path: Path) -> None:
    unlabelled = dataclasses.replace(few_digits(), labels=None)
    cases = [
        (few_digits(), 0, "epochs must be at least 1"),
        (mixture2d(n=500), 1, "4x4 pixels"),
        (unlabelled, 1, "labelled images"),
        (few_digits(100), 1, "too few"),
    ]
    for data, epochs, complaint in cases:
        with pytest.raises(UserError, match=complaint):
            train_classifier(data, tmp_path / "out", epochs=epochs, progress=False)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        train_classifier(few_digits(200), tmp_path / "file", epochs=1, progress=False)


def test_seeds_that_differ_in_their_high_word_alone(tmp_path: Path) -> None:
    for seed in (1, 1 + 2**32):
        train_classifier(few_digits(200), tmp_path / str(seed), seed=seed, epochs=1, progress=False)
    one, other = (load_classifier(tmp_path / str(seed))[0].state_dict() for seed in (1, 1 + 2**32))
    assert not all(torch.equal(one[name], other[name]) for name in one)
