"""Training of the small classifier."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import trigflow
from trigflow.data import Dataset, digits, mixture2d
from trigflow.data.codecs import ImageCodec
from trigflow.evaluation.metrics.classifier_net import CARD, CLASSIFIERS, WEIGHTS, Classifier, load_classifier
from trigflow.evaluation.metrics.classifier_training import AUGMENTATIONS, train_classifier
from trigflow.system.errors import UserError

SHIPPED = Path(trigflow.__path__[0]) / "models" / "pretrained"
JUDGES = [("digits-judge", 1_797), ("mnist-judge", 60_000)]


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
    assert card["training"] == {
        "data": "digits",
        "seed": 3,
        "epochs": 12,
        "num_train": 640,
        "augment": "normal",
    }
    assert card["architecture"] == "convolutions"
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


@pytest.mark.parametrize("network", CLASSIFIERS)
@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_every_network_is_told_by_its_card(network: str, augment: str, tmp_path: Path) -> None:
    """Of colour images whose sides differ; the same seed gives the same weights."""
    images = torch.randint(0, 256, (150, 3, 9, 17), generator=torch.Generator().manual_seed(0)).byte()
    data = Dataset("noise", images, torch.arange(150) % 3, 3, ImageCodec.measure(images))
    for name in "ab":
        options = {"network": network, "augment": augment}
        train_classifier(data, tmp_path / name, seed=5, epochs=1, progress=False, **options)
    (net, card), (again, _) = (load_classifier(tmp_path / name) for name in "ab")
    assert type(net) is CLASSIFIERS[network] is type(again)
    assert (card["architecture"], card["training"]["augment"]) == (network, augment)
    assert torch.equal(net(images), again(images)) and net(images).shape == (150, 3)
    assert torch.equal(net.head(net.features(images)), net(images))


def test_an_augmentation_moves_images_as_far_as_it_says() -> None:
    angle, growth, *shifts = AUGMENTATIONS["uniform"](5000)
    for values, most in ((angle, math.radians(10)), (growth, 0.1), *((shift, 2 / 14) for shift in shifts)):
        assert 0.98 * most < values.max() <= most and -most <= values.min() < -0.98 * most


def test_a_card_without_a_name_is_of_todays_network_and_no_other_code_is_run(tmp_path: Path) -> None:
    train_classifier(few_digits(200), tmp_path, epochs=1, progress=False)
    card = json.loads((tmp_path / CARD).read_text())
    assert card.pop("architecture") == "convolutions"
    (tmp_path / CARD).write_text(json.dumps(card))
    assert type(load_classifier(tmp_path)[0]) is Classifier
    for name in ("resdual", "os:system", None, ["residual"]):
        (tmp_path / CARD).write_text(json.dumps(card | {"architecture": name}))
        with pytest.raises(UserError, match=r"unknown architecture .*there are: convolutions, residual"):
            load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("name", "num"), [("digits-classifier", 1_797), ("mnist-classifier", 60_000), *JUDGES]
)
def test_the_shipped_classifiers_meet_their_promises(name: str, num: int) -> None:
    folder = SHIPPED / name
    card = json.loads((folder / CARD).read_text())
    assert card["score"]["held_out_accuracy"] >= 0.99
    assert sum(file.stat().st_size for file in folder.iterdir()) <= (
        1_000_000 if (name, num) in JUDGES else 500_000
    )
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
    for options, complaint in (
        ({"network": "resdual"}, "unknown network 'resdual' .did you mean 'residual'"),
        ({"augment": "flip"}, "unknown augmentation 'flip'; there are: normal, uniform"),
    ):
        with pytest.raises(UserError, match=complaint):
            train_classifier(few_digits(), tmp_path / "out", epochs=1, progress=False, **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file"):
        train_classifier(few_digits(200), tmp_path / "file", epochs=1, progress=False)


def test_seeds_that_differ_in_their_high_word_alone(tmp_path: Path) -> None:
    for seed in (1, 1 + 2**32):
        train_classifier(few_digits(200), tmp_path / str(seed), seed=seed, epochs=1, progress=False)
    one, other = (load_classifier(tmp_path / str(seed))[0].state_dict() for seed in (1, 1 + 2**32))
    assert not all(torch.equal(one[name], other[name]) for name in one)
