"""Feature extractors: the table, the shipped classifier, files and modules of the user."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from test_efficientnet import installed
from torch import Tensor, nn

import trigflow
from trigflow.data import digits, load_data
from trigflow.evaluation.metrics import (
    FEATURES,
    extract_features,
    frechet_distance,
    label_agreement,
    load_features,
)
from trigflow.evaluation.metrics.classifier_net import CARD, WEIGHTS
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.system.files import sha256_of

MNIST = Path(__file__).parents[4] / "shared" / "data" / "mnist"


class Mean(nn.Module):
    """Features of a user's own: the mean of each channel."""

    def forward(self, samples: Tensor) -> Tensor:
        return samples.float().mean((2, 3))


class Flat(nn.Module):
    """Not (B, D)."""

    def forward(self, samples: Tensor) -> Tensor:
        return samples.float().mean()


class NeedsWidth(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()


@pytest.mark.parametrize("name", FEATURES)
def test_every_feature_extractor_of_the_table(name: str, device: torch.device) -> None:
    """Vectors of finite numbers that do not depend on the batch they are computed in."""
    if name == "efficientnet-lite0" and not installed:
        pytest.skip("the extra 'efficientnet' is not installed")
    features = load_features(name, device)
    images = digits().data[:30]
    if features.data_shape is not None:
        images = nn.functional.interpolate(images, features.data_shape[1:])
    together = extract_features(features, images)
    assert together.shape[0] == 30 and together.device.type == "cpu"
    assert torch.isfinite(together).all() and not together.requires_grad
    assert torch.allclose(extract_features(features, images, batch=7), together, atol=1e-5)
    assert features.name == name and features.score_name == f"FD-{name}"


def test_the_shipped_classifier_knows_digits(device: torch.device) -> None:
    """Also those it has not seen: its card tells their share; here a lower bound on all."""
    data = digits()
    assert data.labels is not None
    features = load_features("digits-classifier", device)
    agreement = label_agreement(features, data.data, data.labels)
    assert agreement is not None and agreement > 0.99
    shuffled = label_agreement(features, data.data, data.labels.roll(1))
    assert shuffled is not None and shuffled < 0.2


@pytest.mark.skipif(not MNIST.is_dir(), reason="MNIST is not here")
def test_the_shipped_classifier_knows_mnist(device: torch.device) -> None:
    """The test images, which had no part in its training."""
    data = load_data(Component("mnist", {"folder": str(MNIST), "split": "test"}))
    images, labels = data.data[:2000], data.labels
    assert labels is not None
    agreement = label_agreement(load_features("mnist-classifier", device), images, labels[:2000])
    assert agreement is not None and agreement >= 0.99


def test_classifier_features_see_what_pixels_do_not() -> None:
    """A Gaussian with the pixels' own mean and covariance is close in pixels, far in the classifier's features."""
    real = digits().data
    pixels = real.flatten(1).double()
    root = torch.linalg.cholesky(pixels.T.cov() + 1e-6 * torch.eye(64))
    fake = pixels.mean(0) + torch.randn(2000, 64, dtype=torch.float64) @ root.T
    fake = fake.round().clamp(0, 255).to(torch.uint8).view(-1, 1, 8, 8)

    def excess(name: str) -> float:
        features = [extract_features(load_features(name), x) for x in (real, fake, real[::2], real[1::2])]
        return frechet_distance(features[0], features[1]) / frechet_distance(features[2], features[3])

    assert excess("digits-classifier") > 10 * excess("pixels")


def test_pixels_of_vectors_are_the_vectors() -> None:
    vectors = torch.randn(5, 3)
    assert torch.equal(extract_features(load_features("pixels"), vectors), vectors)
    assert label_agreement(load_features("pixels"), vectors, torch.zeros(5)) is None


def test_a_module_of_the_users() -> None:
    features = load_features(f"{__name__}:Mean")
    assert features.name == f"{__name__}:Mean"
    assert torch.equal(
        extract_features(features, torch.full((3, 2, 4, 4), 7, dtype=torch.uint8)), torch.full((3, 2), 7.0)
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("mean", "x"), ("mean", None), ("std", None), ("std", 0), ("std", 1e300)),
        *(("width", 0), ("width", "x"), ("data_shape", []), ("data_shape", None), ("num_classes", -1)),
    ],
)
def test_a_classifiers_card_out_of_range(key: str, value: object, tmp_path: Path) -> None:
    shipped = Path(trigflow.__path__[0]) / "models" / "pretrained" / "digits-classifier"
    (tmp_path / WEIGHTS).write_bytes((shipped / WEIGHTS).read_bytes())
    card = json.loads((shipped / CARD).read_text())
    card["network"][key] = value
    (tmp_path / CARD).write_text(json.dumps(card))
    with pytest.raises(UserError, match=rf"classifier.json: network.{key}"):
        load_features(str(tmp_path))


def test_a_classifier_by_its_folder_or_file(tmp_path: Path) -> None:
    shipped = Path(trigflow.__path__[0]) / "models" / "pretrained" / "digits-classifier"
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in (WEIGHTS, CARD):
        (folder / name).write_bytes((shipped / name).read_bytes())
    for path in (folder, folder / WEIGHTS):
        features = load_features(str(path))
        assert features.name == "mine" and features.data_shape == (1, 8, 8)
    card = json.loads((shipped / CARD).read_text())
    assert card.pop("sha256") == sha256_of(shipped / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card))  # as older versions wrote it
    (folder / WEIGHTS).write_bytes(b"broken")
    with pytest.raises(UserError, match="damaged classifier"):
        load_features(str(folder))
    (folder / CARD).write_bytes((shipped / CARD).read_bytes())
    content = bytearray((shipped / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match=r"its digest is not that in classifier\.json"):
        load_features(str(folder))
    (folder / CARD).write_text("{}")
    with pytest.raises(UserError, match=r"classifier.json is damaged \(it holds no 'network'\)"):
        load_features(str(folder))
    with pytest.raises(UserError, match="no classifier here"):
        load_features(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("pixel", "did you mean 'pixels'"),
        ("no.such.module:Thing", "cannot import"),
        (f"{__name__}:Nothing", "Nothing"),
        (f"{__name__}:NeedsWidth", "without arguments"),
        (f"{__name__}:digits", "not a torch.nn.Module"),
    ],
)
def test_unknown_features(name: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        load_features(name)


def test_features_that_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"are for data \(1, 8, 8\)"):
        extract_features(load_features("digits-classifier"), torch.zeros(4, 1, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"expected \(B, D\)"):
        extract_features(load_features(f"{__name__}:Flat"), torch.zeros(4, 1, 8, 8))
