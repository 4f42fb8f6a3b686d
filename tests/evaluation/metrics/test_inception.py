"""The Inception of the FID: names and numbers of its weights, its pools by hand, and the way from a file to a score."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trigflow.evaluation.metrics import extract_features, load_features
from trigflow.evaluation.metrics.features import class_logits
from trigflow.evaluation.metrics.inception import BlockA, BlockE, Inception, mean_pool
from trigflow.system.errors import UserError

A = "branch1x1 branch5x5_1 branch5x5_2 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3 branch_pool"
B = "branch3x3 branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"
C = (
    "branch1x1 branch7x7_1 branch7x7_2 branch7x7_3 branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4"
    " branch7x7dbl_5 branch_pool"
)
D = "branch3x3_1 branch3x3_2 branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4"
E = (
    "branch1x1 branch3x3_1 branch3x3_2a branch3x3_2b branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a branch3x3dbl_3b"
    " branch_pool"
)
MIXED = {"5b": A, "5c": A, "5d": A, "6a": B, "6b": C, "6c": C, "6d": C, "6e": C, "7a": D, "7b": E, "7c": E}
STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3"]
KINDS = ["conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]


@pytest.fixture(scope="module")
def network() -> Inception:
    """Random weights, scaled so that the features are neither 0 nor infinite."""
    torch.manual_seed(0)
    network = Inception()
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    return network.eval().requires_grad_(False)


def test_names_and_numbers_of_the_weights(network: Inception) -> None:
    convolutions = STEM + [
        f"Mixed_{place}.{name}" for place, names in MIXED.items() for name in names.split()
    ]
    wanted = {f"{name}.{kind}" for name in convolutions for kind in KINDS} | {"fc.weight", "fc.bias"}
    found = {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    assert found == wanted and len(convolutions) == 94
    numbers = {name: value.numel() for name, value in network.named_parameters()}
    assert sum(n for name, n in numbers.items() if not name.startswith("fc.")) == 21_785_568
    assert network.fc.weight.shape == (1008, 2048)


def plain_mean_pool(x: Tensor) -> Tensor:
    """Pixel by pixel, over those of the 3x3 that lie in the picture."""
    out = torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            out[:, :, i, j] = x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
    return out


def plain_conv(layer: nn.Module, x: Tensor) -> Tensor:
    """Convolution as a sum over shifted pictures, normalised by the running moments, eps 0.001."""
    weight, bn = layer.conv.weight, layer.bn
    height, width = weight.shape[2:]
    padded = nn.functional.pad(x, (width // 2, width // 2, height // 2, height // 2))
    y = sum(
        torch.einsum(
            "oc,bchw->bohw", weight[:, :, i, j], padded[:, :, i:, j:][..., : x.shape[2], : x.shape[3]]
        )
        for i in range(height)
        for j in range(width)
    )
    scale = bn.weight / (bn.running_var + 0.001).sqrt()
    y = (y - bn.running_mean[:, None, None]) * scale[:, None, None] + bn.bias[:, None, None]
    return y.clamp_min(0)


def randomised(block: nn.Module) -> nn.Module:
    for layer in block.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return block.double().eval().requires_grad_(False)


def chain(block: nn.Module, names: str, x: Tensor) -> Tensor:
    for name in names.split():
        x = plain_conv(getattr(block, name), x)
    return x


def test_block_a_by_hand() -> None:
    block, x = randomised(BlockA(8, 32)), torch.rand(2, 8, 6, 5, dtype=torch.float64)
    branches = ["branch1x1", "branch5x5_1 branch5x5_2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3"]
    expected = [chain(block, names, x) for names in branches]
    expected.append(chain(block, "branch_pool", plain_mean_pool(x)))
    assert torch.allclose(block(x), torch.cat(expected, 1), rtol=1e-10)
    assert torch.allclose(mean_pool(x), plain_mean_pool(x))


@pytest.mark.parametrize("max_pool", [False, True])
def test_block_e_by_hand(max_pool: bool) -> None:
    block, x = randomised(BlockE(8, max_pool)), torch.rand(1, 8, 4, 3, dtype=torch.float64)
    branches = ["branch1x1", "branch3x3_1 branch3x3_2a", "branch3x3_1 branch3x3_2b"]
    branches += [f"branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3{end}" for end in "ab"]
    expected = [chain(block, names, x) for names in branches]
    biggest = torch.stack(
        [
            x[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].amax((2, 3))
            for i in range(4)
            for j in range(3)
        ],
        2,
    ).view_as(x)
    expected.append(chain(block, "branch_pool", biggest if max_pool else plain_mean_pool(x)))
    assert torch.allclose(block(x), torch.cat(expected, 1), rtol=1e-10)


def test_only_the_last_block_has_a_max_pool(network: Inception) -> None:
    assert not network.Mixed_7b.max_pool and network.Mixed_7c.max_pool


def test_from_a_file_to_features_called_fid(network: Inception, tmp_path: Path) -> None:
    """Older files do not count batches."""
    path = tmp_path / "inception.pth"
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save(state, path)
    features = load_features(f"inception={path}")
    assert features.score_name == "FID" and features.is_inception
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    vectors = extract_features(features, images)
    assert vectors.shape == (2, 2048) and torch.allclose(vectors, network(images), rtol=1e-4)
    assert not torch.allclose(vectors[0], vectors[1])
    logits = class_logits(features, vectors)
    assert logits is not None and torch.allclose(logits, vectors @ network.fc.weight.T, rtol=1e-4)
    torch.save({name: value for name, value in state.items() if name != "fc.bias"}, path)
    with pytest.raises(UserError, match=r"no tensor 'fc.bias', give pt_inception-2015-12-05-6726825d.pth"):
        load_features(f"inception={path}")
