"""DINOv2: the names of its weights, a block beside a plain one in float64, and the positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trigflow.evaluation.metrics import dinov2, published
from trigflow.evaluation.metrics.dinov2 import DinoV2, Size, TransformerBlock, load_dinov2
from trigflow.evaluation.metrics.features import extract_features, load_features
from trigflow.system.errors import UserError

TINY, TINY_GATED = Size(12, 2, 3, grid=37), Size(12, 2, 3, gated=True)
BLOCK = "norm1.weight norm1.bias attn.qkv.weight attn.qkv.bias attn.proj.weight attn.proj.bias ls1.gamma"
BLOCK += " norm2.weight norm2.bias ls2.gamma"
PLAIN, GATED = (
    "mlp.fc1.weight mlp.fc1.bias mlp.fc2.weight mlp.fc2.bias",
    "mlp.w12.weight mlp.w12.bias mlp.w3.weight",
)
GATED += " mlp.w3.bias"
OUTSIDE = {
    "cls_token",
    "pos_embed",
    "patch_embed.proj.weight",
    "patch_embed.proj.bias",
    "norm.weight",
    "norm.bias",
}


def random_network(size: Size) -> DinoV2:
    network = DinoV2(size)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize(("size", "mlp"), [(TINY, PLAIN), (TINY_GATED, GATED)])
def test_names_of_the_weights(size: Size, mlp: str) -> None:
    blocks = {f"blocks.{n}.{name}" for n in range(2) for name in f"{BLOCK} {mlp}".split()}
    assert set(DinoV2(size).state_dict()) == OUTSIDE | blocks


@pytest.mark.parametrize(
    ("size", "millions"),
    [(dinov2.SMALL, 22.1), (dinov2.BASE, 86.6), (dinov2.LARGE, 304.4), (dinov2.GIANT, 1136.5)],
)
def test_numbers_of_the_weights(size: Size, millions: float) -> None:
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in DinoV2(size).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


def plain_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


def plain_block(block: TransformerBlock, x: Tensor, heads: int) -> Tensor:
    """Tokens (L, width), head by head."""
    width = x.shape[1] // heads
    q, k, v = (plain_norm(block.norm1, x) @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=1)
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        mixed.append((q[:, part] @ k[:, part].T / width**0.5).softmax(1) @ v[:, part])
    x = x + block.ls1.gamma * block.attn.proj(torch.cat(mixed, 1))
    y, mlp = plain_norm(block.norm2, x), block.mlp
    if hasattr(mlp, "w12"):
        gate, value = mlp.w12(y).chunk(2, dim=1)
        return x + block.ls2.gamma * mlp.w3(gate * gate.sigmoid() * value)
    hidden = mlp.fc1(y)
    return x + block.ls2.gamma * mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))


@pytest.mark.parametrize("size", [TINY, TINY_GATED])
def test_a_block_equals_a_plain_one(size: Size) -> None:
    block = random_network(size).double().blocks[0]
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    expected = torch.stack([plain_block(block, one, 3) for one in x])
    assert torch.allclose(block(x), expected, rtol=1e-10, atol=1e-12)


def cubic(distance: float) -> float:
    """Keys' kernel with a = -0.75."""
    d = abs(distance)
    if d >= 2:
        return 0.0
    return 1.25 * d**3 - 2.25 * d**2 + 1 if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)


def test_positions() -> None:
    """Patch n lies at (n + 0.5) * 37 / 16.1 - 0.5 of the old grid, as in the reference."""
    network = DinoV2(TINY)
    rows = torch.randn(37)
    nn.init.constant_(network.pos_embed, 7)
    network.pos_embed.data[0, 1:] = rows[:, None].expand(37, 37).reshape(-1, 1)
    found = network.positions().detach()
    assert found.shape == (1, 1 + 16 * 16, 12) and torch.equal(found[:, 0], network.pos_embed[:, 0])
    places = [(n + 0.5) * 37 / 16.1 - 0.5 for n in range(2, 14)]
    expected = [sum(cubic(place - row) * float(rows[row]) for row in range(37)) for place in places]
    assert found[0, 1:, 0].view(16, 16)[2:-2, 5].tolist() == pytest.approx(expected, abs=1e-4)
    whole = DinoV2(Size(12, 1, 3, grid=16))
    assert whole.positions() is whole.pos_embed


def test_from_a_file_to_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, path = random_network(TINY), tmp_path / "tiny.pth"
    torch.save(network.state_dict() | {"mask_token": torch.zeros(1, 12)}, path)
    monkeypatch.setitem(published.PUBLISHED, "tiny", published._dinov2(TINY, "t"))
    features = load_features(f"tiny={path}")
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    vectors = extract_features(features, images)
    assert vectors.shape == (3, 12) and torch.allclose(vectors, network(images), atol=1e-5)
    assert features.score_name == "FD-tiny" and features.classify is None
    assert torch.allclose(extract_features(features, images.repeat(1, 3, 1, 1)), vectors, atol=1e-5)
    with pytest.raises(UserError, match=r"uint8 images .*, not torch.float32"):
        extract_features(features, torch.zeros(3, 2))
    torch.save(network.state_dict() | {"register_tokens": torch.zeros(1, 4, 12)}, path)
    with pytest.raises(UserError, match="'register_tokens' is unknown"):
        load_dinov2(path, "another", TINY)
