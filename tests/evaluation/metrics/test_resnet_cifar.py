"""ResNets of CIFAR-10: form, and, where the real weights and data are at hand, accuracy and distances."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from trigflow.data import load_data
from trigflow.evaluation.metrics import extract_features, frechet_distance, label_agreement, load_features
from trigflow.evaluation.metrics.resnet_cifar import CifarResNet, _Block

SHARED = next(
    (up / "shared" for up in Path(__file__).parents if (up / "shared" / "weights").is_dir()), Path()
)
REAL = {20: SHARED / "weights" / "resnet20-12fca82f.th", 56: SHARED / "weights" / "resnet56-4bfd9763.th"}
TEST, TRAIN = (SHARED / "data" / f"cifar10-{part}-32x32.zip" for part in ("test", "train"))
needs_real = pytest.mark.skipif(
    not (TEST.is_file() and REAL[20].is_file()), reason="no real weights and data beside the checkout"
)


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (56, 0.85)])
def test_size(depth: int, millions: float) -> None:
    """Table 6 of the paper; depth counts convolutions and the last layer."""
    network = CifarResNet(depth)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert sum(isinstance(layer, nn.Conv2d) for layer in network.modules()) + 1 == depth


def test_the_shortcut_is_every_second_pixel_between_zeros() -> None:
    x = torch.rand(2, 16, 8, 8)
    shortcut = _Block(16, 32, 2)._shortcut(x)
    assert torch.equal(shortcut[:, 8:24], x[:, :, ::2, ::2]) and shortcut.count_nonzero() == 2 * 16 * 16
    assert torch.equal(_Block(16, 16, 1)._shortcut(x), x)


def test_from_a_file_to_features(tmp_path: Path) -> None:
    network, path = CifarResNet(20).eval(), tmp_path / "weights.th"
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 10.0}, path)
    features = load_features(f"resnet20={path}")
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    vectors = extract_features(features, images)
    assert vectors.shape == (4, 64) and torch.allclose(vectors, network(images), atol=1e-5)
    assert features.score_name == "FD-resnet20" and not features.is_inception


def blurred(images: Tensor) -> Tensor:
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
    smooth = [torch.tensor(list(p.filter(ImageFilter.GaussianBlur(1)).tobytes())) for p in pictures]
    return torch.stack(smooth).to(torch.uint8).view(len(images), 32, 32, 3).permute(0, 3, 1, 2)


def noisy(images: Tensor) -> Tensor:
    noise = 10 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + noise).round().clamp(0, 255).to(torch.uint8)


@needs_real
@pytest.mark.parametrize("depth", [20])
def test_real_weights_know_real_images(depth: int) -> None:
    """Two sets of 1,000 images: near each other; noise, blur and missing classes are far."""
    data = load_data(str(TEST))
    assert data.labels is not None
    features = load_features(f"resnet{depth}={REAL[depth]}")
    agreement = label_agreement(features, data.data[:1000], data.labels[:1000])
    assert agreement is not None and 0.9 < agreement < 0.935
    images, five = data.data[:1000], data.data[data.labels < 5][:1000]
    real = extract_features(features, data.data[1000:2000])
    near, *far = (
        frechet_distance(extract_features(features, x), real)
        for x in (images, noisy(images), blurred(images), five)
    )
    assert near < 0.6 and min(far) > 10 * near


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize(("depth", "accuracy"), [(20, 0.9173), (56, 0.9339)])
def test_real_accuracy(depth: int, accuracy: float) -> None:
    data = load_data(str(TEST))
    assert data.labels is not None
    agreement = label_agreement(load_features(f"resnet{depth}={REAL[depth]}"), data.data, data.labels)
    assert agreement == pytest.approx(accuracy, abs=2e-4)


@needs_real
@pytest.mark.slow
def test_real_distances() -> None:
    """To all 50,000 images of training. Measured: 0.039, 6.8, 17.6, 6.9."""
    test, features = load_data(str(TEST)), load_features(f"resnet20={REAL[20]}")
    assert test.labels is not None
    train = extract_features(features, load_data(str(TRAIN)).data)
    images, five = test.data[:5000], test.data[test.labels < 5][:5000]
    found = [
        frechet_distance(extract_features(features, x), train)
        for x in (images, noisy(images), blurred(images), five)
    ]
    assert found == pytest.approx([0.039, 6.82, 17.58, 6.89], rel=0.05)
