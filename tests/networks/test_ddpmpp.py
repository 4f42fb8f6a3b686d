"""DDPM++: its equations written out, its group norm against PyTorch's, its layout, derivative and published size."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_networks import DDPMPP as TINY
from torch import Tensor, nn

from trigflow.dual import MODES, fallbacks, value_and_tangent
from trigflow.networks.ddpmpp import DDPMpp
from trigflow.networks.ddpmpp_blocks import (
    NORMALIZATIONS,
    Attention,
    DDPMppBlock,
    DDPMppLayout,
    GroupNorm,
    Modulation,
    WaveEmbedding,
)

FORMS: dict[str, dict[str, Any]] = {"sCM": {}, "published": {"normalization": "shift"}}
each_form = pytest.mark.parametrize("form", FORMS)


def tiny(form: str, shape: tuple[int, ...] = (2, 8, 8), **options: Any) -> DDPMpp:
    """In float64, with no layer of zeros."""
    torch.manual_seed(0)
    net = DDPMpp(shape, 3, **(TINY | FORMS[form] | options)).double()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return net


def points(shape: tuple[int, ...] = (2, 8, 8), count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, *shape, dtype=torch.float64)
    return x, torch.linspace(0.1, 1.5, count, dtype=torch.float64), torch.arange(count) % 4


def randomized(module: nn.Module) -> Any:
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module.double()


# The blocks, written out in NumPy for one image (C, H, W).


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def array(parameter: Tensor) -> np.ndarray:
    return parameter.detach().numpy()


def normed(x: np.ndarray, layer: GroupNorm, groups: int) -> np.ndarray:
    y = np.concatenate([(g - g.mean()) / np.sqrt(g.var() + 1e-6) for g in np.split(x, groups)])
    return y * array(layer.weight)[:, None, None] + array(layer.bias)[:, None, None]


def convolved(x: np.ndarray, layer: nn.Conv2d) -> np.ndarray:
    """The sum over the neighbours of each pixel, zeros outside."""
    weight, edge = array(layer.weight), layer.weight.shape[-1]
    padded = np.pad(x, ((0, 0), (edge // 2,) * 2, (edge // 2,) * 2))
    output = np.zeros((len(weight), *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            output[:, i, j] = (weight * padded[None, :, i : i + edge, j : j + edge]).sum((1, 2, 3))
    return output + array(layer.bias)[:, None, None]


def linear(v: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return v @ array(layer.weight).T + array(layer.bias)


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.sqrt(np.mean(v * v) + 1e-4)


def modulated(h: np.ndarray, emb: np.ndarray, layer: Modulation, groups: int) -> np.ndarray:
    style = linear(emb, layer.style)
    if layer.normalization == "shift":
        return normed(h + style[:, None, None], layer.norm, groups)
    s, b = np.split(style, 2)
    s, b = (unit(s), unit(b)) if layer.normalization == "double" else (1 + s, b)
    return normed(h, layer.norm, groups) * s[:, None, None] + b[:, None, None]


def attended(x: np.ndarray, layer: Attention, groups: int, heads: int) -> np.ndarray:
    tokens = normed(x, layer.norm, groups).reshape(len(x), -1).T
    qkv = linear(tokens, layer.attention.qkv).reshape(len(tokens), 3, heads, -1)
    y = np.zeros((len(tokens), heads, qkv.shape[-1]))
    for h in range(heads):
        q, k, v = qkv[:, :, h].transpose(1, 0, 2)
        for n in range(len(tokens)):
            weight = np.exp(k @ q[n] / math.sqrt(len(q[n])))
            y[n, h] = weight @ v / weight.sum()
    branch = linear(y.reshape(tokens.shape), layer.attention.out).T.reshape(x.shape)
    return (x + branch) / math.sqrt(2)


def resampled(x: np.ndarray, how: str) -> np.ndarray:
    if how == "halve":
        return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x.repeat(2, axis=1).repeat(2, axis=2) if how == "double" else x


def reference(x: np.ndarray, emb: np.ndarray, block: DDPMppBlock, how: str, heads: int) -> np.ndarray:
    h = convolved(resampled(silu(normed(x, block.norm, len(x) // 4)), how), block.conv_1)
    h = convolved(silu(modulated(h, emb, block.modulation, 2)), block.conv_2)
    shortcut = resampled(x, how)
    if how != "keep" or len(x) != len(h):
        shortcut = convolved(shortcut, block.skip)
    y = (shortcut + h) / math.sqrt(2)
    return attended(y, block.attention, 2, heads) if heads else y


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize(
    ("c_in", "how", "heads"),
    [(8, "keep", 0), (12, "keep", 2), (8, "halve", 0), (8, "double", 1), (20, "keep", 0)],
)
def test_a_block_is_the_papers(normalization: str, c_in: int, how: Any, heads: int) -> None:
    plan = DDPMppLayout(2, (8,), (True,), 1, 5, normalization, heads, 0.0)
    block = randomized(DDPMppBlock(c_in, 8, plan, resample=how, attention=heads > 0))
    x = torch.randn(2, c_in, 4, 4, dtype=torch.float64)
    emb = torch.randn(2, 5, dtype=torch.float64)
    expected = [reference(a.numpy(), e.numpy(), block, how, heads) for a, e in zip(x, emb, strict=True)]
    torch.testing.assert_close(block(x, emb), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("label", [0, 2, 3])
def test_the_embedding_is_the_papers(label: int) -> None:
    """The null label, 3, is a row of zeros, and so is no label."""
    embedding = randomized(WaveEmbedding(6, 5, 3, "positional", 16.0, guidance_input=False))
    t, one_hot = 0.4, np.array([float(label == c) for c in range(3)])
    angles = t * np.array([1.0, 10000 ** (-1 / 3), 10000 ** (-2 / 3)])
    waves = np.concatenate([np.cos(angles), np.sin(angles)]) + linear(one_hot * math.sqrt(3), embedding.label)
    expected = torch.from_numpy(silu(linear(silu(linear(waves, embedding.first)), embedding.second)))
    times = torch.tensor([t], dtype=torch.float64)
    # The frequencies are kept in float32.
    torch.testing.assert_close(embedding(times, torch.tensor([label]))[0], expected, rtol=0, atol=1e-7)
    if label == 3:
        torch.testing.assert_close(embedding(times, None)[0], expected, rtol=0, atol=1e-7)


# The group norm.


@pytest.mark.parametrize(
    ("channels", "groups"), [(3, 1), (8, 2), (36, 9), (128, 32), (144, 24), (256, 32), (384, 32)]
)
def test_groups_have_four_channels_at_least(channels: int, groups: int) -> None:
    """EDM's number wherever that divides the channels; 32 do not divide 144."""
    assert GroupNorm(channels).groups == groups


@pytest.mark.parametrize("size", [(5,), (4, 6), (2, 3, 4)])
@pytest.mark.parametrize("last", [False, True])
def test_the_group_norm_is_pytorchs(size: tuple[int, ...], last: bool) -> None:
    """Value, gradients, and a derivative that PyTorch's has where channels do not lie last."""
    norm = randomized(GroupNorm(12))
    x, dx = torch.randn(2, 3, 12, *size, dtype=torch.float64)
    x, dx = x + 5, dx.clone()
    scale, shift = torch.randn(2, 3, 12, dtype=torch.float64)

    def pytorchs(x: Tensor) -> Tensor:
        y = F.group_norm(x, 3, norm.weight, norm.bias, 1e-6)
        return y * scale.reshape(3, 12, *(1,) * len(size)) + shift.reshape(3, 12, *(1,) * len(size))

    _, expected = torch.func.jvp(pytorchs, (x,), (dx,))
    if last:
        x, dx = (y.movedim(1, -1).contiguous().movedim(-1, 1) for y in (x, dx))
    value, tangent = torch.func.jvp(lambda x: norm(x, scale, shift), (x,), (dx,))
    torch.testing.assert_close(value, pytorchs(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(tangent, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(norm(x), F.group_norm(x, 3, norm.weight, norm.bias, 1e-6), rtol=0, atol=1e-12)
    leaves = [x.requires_grad_(), norm.weight, norm.bias]
    ours = torch.autograd.grad((norm(x, scale, shift) * dx).sum(), leaves)
    theirs = torch.autograd.grad((pytorchs(x) * dx).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_normed_in_full(dtype: torch.dtype) -> None:
    """Far from zero, where the statistics in half precision would be rounding, and the squares infinite."""
    x = (torch.randn(2, 16, 8, 8) + 400).to(dtype)
    output = GroupNorm(16)(x)
    assert output.dtype == dtype
    expected = F.group_norm(x.double(), 4, eps=1e-6)
    assert (output.double() - expected).abs().max() < 2 * torch.finfo(dtype).eps * expected.abs().max()


def test_a_constant_group_has_a_derivative() -> None:
    """The variance is zero: where a network starts from zeros, nothing is divided by it."""
    norm, x = GroupNorm(4), torch.full((1, 4, 2, 2), 3.0)
    output = value_and_tangent(norm, (x,), (torch.randn_like(x),))
    assert not output.value.any() and output.tangent.isfinite().all()
    x.requires_grad_()
    norm(x).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


# Derivative and precision.


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("shape", [(2, 8), (2, 4, 8), (1, 4, 4, 2)])
def test_modes_agree(normalization: str, shape: tuple[int, ...]) -> None:
    net, (x, t, labels) = tiny("sCM", shape, normalization=normalization), points(shape)
    directions, found = (torch.randn_like(x), torch.ones_like(t)), {}
    for mode in MODES:
        with fallbacks() as names:
            cond = {"labels": labels}
            found[mode] = value_and_tangent(net, (x, t), directions, mode=mode, cond=cond).tangent
        assert not names
    exact = found["func"]
    assert (found["dual"] - exact).norm() <= 1e-12 * exact.norm()
    assert (found["finite_difference"] - exact).norm() <= 1e-7 * exact.norm()


@pytest.mark.parametrize("mode", ["dual", "func"])
def test_the_derivative_compiles_in_one_graph(mode: Any) -> None:
    net, (x, t, _) = tiny("sCM", channel_mult=(1,), attention_levels=(0,)), points()

    def along(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        output = value_and_tangent(net, (x, t), (torch.ones_like(x), torch.ones_like(t)), mode=mode)
        return output.value, output.tangent

    compiled = torch.compile(along, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), along(x, t))


@each_form
def test_half_precision_is_close(form: str) -> None:
    net, (x, t, labels) = tiny(form).float(), points()
    x, t = x.float(), t.float()
    exact = net(x, t, labels)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x, t, labels)
    assert (output - exact).norm() < 0.03 * output.norm()
    low = net.bfloat16()(x.bfloat16(), t.bfloat16(), labels)
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() < 0.1 * exact.norm()


@each_form
def test_forward_writes_no_weight_and_no_input(form: str) -> None:
    net, (x, t, labels) = tiny(form), points()
    watched = [x, t, *net.parameters(), *net.buffers()]
    versions = [tensor._version for tensor in watched]
    for mode in MODES:
        value_and_tangent(net, (x, t), (x, t), mode=mode, cond={"labels": labels})
    assert versions == [tensor._version for tensor in watched]


# Initial values.


@each_form
def test_a_fresh_block_is_its_shortcut(form: str) -> None:
    plan = DDPMppLayout(2, (8,), (True,), 1, 16, FORMS[form].get("normalization", "double"), 1, 0.0)
    x, emb = torch.randn(2, 8, 4, 4), torch.randn(2, 16)
    torch.testing.assert_close(DDPMppBlock(8, 8, plan, attention=True)(x, emb), x / 2)
    torch.testing.assert_close(DDPMppBlock(8, 8, plan)(x, emb), x / math.sqrt(2))
    changing = DDPMppBlock(8, 12, plan)
    torch.testing.assert_close(changing(x, emb), changing.skip(x) / math.sqrt(2))


def test_weights_start_as_edms() -> None:
    """Uniform, of variance 2 / (fan_in + fan_out) with a fifth of it for q, k and v; biases 0."""
    torch.manual_seed(0)
    net = DDPMpp((3, 16, 16), 10, channels=64, channel_mult=(1, 2), num_blocks=1, normalization="shift")
    fans = {
        "embedding.label": (10, 64),
        "embedding.first": (64, 256),
        "conv_in": (27, 9 * 64),
        "down.2.conv_1": (9 * 64, 9 * 128),
        "down.2.modulation.style": (256, 128),
        "down.2.skip": (64, 128),
        "up.0.conv_1": (9 * 256, 9 * 128),
        "down.2.attention.attention.qkv": (128, 384),
    }
    for name, fan in fans.items():
        layer = net.get_submodule(name)
        variance = 2 / sum(fan) * (0.2 if name.endswith("qkv") else 1)
        assert layer.weight.var().item() == pytest.approx(variance, rel=0.1), name
        assert layer.weight.abs().max() < math.sqrt(3 * variance)
        assert not layer.bias.any()
    zero = ("down.2.conv_2", "down.2.attention.attention.out", "conv_out")
    assert not any(net.get_submodule(name).weight.any() for name in zero)


def test_the_double_norm_starts_near_the_plain_one() -> None:
    """Its scale is 1 for each channel, give or take what the embedding says."""
    torch.manual_seed(0)
    net = DDPMpp((3, 16, 16), channels=64, num_blocks=1)
    emb = net.embedding(torch.linspace(0, math.pi / 2, 5), None)
    layer = net.down[0].modulation
    scale, _ = layer.style(emb).reshape(5, 2, -1).unbind(1)
    assert ((scale - 1).abs() < 0.5).all() and (scale - 1).std() > 0.01


# Layout and size.


def blocks(net: DDPMpp) -> dict[str, DDPMppBlock]:
    return {name: module for name, module in net.named_modules() if isinstance(module, DDPMppBlock)}


def on_meta(num_classes: int = 0, **options: Any) -> DDPMpp:
    with torch.device("meta"):
        return DDPMpp((3, 32, 32), num_classes, **options)


def test_attention_stands_where_edm_has_it() -> None:
    """At 16 pixels: each of the four blocks of the way down, the last of the five up; and the first in the middle."""
    net, found = on_meta(), {}
    for name, block in blocks(net).items():
        block.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.shape[-1]}))
    net(torch.randn(2, 3, 32, 32, device="meta"), torch.ones(2, device="meta"))
    down = [32] * 4 + [16] * 5 + [8] * 5
    up = [8] * 5 + [16] * 6 + [32] * 6
    assert list(found.values()) == [*down, 8, 8, *up]
    attending = [name for name, block in blocks(net).items() if isinstance(block.attention, Attention)]
    assert attending == ["down.5", "down.6", "down.7", "down.8", "middle.0", "up.10"]
    assert {found[name] for name in attending if name != "middle.0"} == {16}


def test_shortcuts_have_a_layer_where_size_or_channels_change() -> None:
    found = [name for name, block in blocks(on_meta()).items() if not isinstance(block.skip, nn.Identity)]
    assert found == ["down.0", "down.4", "down.9", *(f"up.{n}" for n in range(17))]


def convolution(c_in: int, c_out: int, edge: int) -> int:
    return c_in * c_out * edge**2 + c_out


def block_size(c_in: int, styles: int, skip: bool, attends: bool) -> int:
    """Parameters of a block to 256 channels: two norms, two convolutions, the style, the shortcut, attention."""
    size = 2 * c_in + convolution(c_in, 256, 3) + 2 * 256 + convolution(256, 256, 3)
    size += styles * 256 * (512 + 1)
    size += convolution(c_in, 256, 1) if skip else 0
    return size + (2 * 256 + convolution(256, 768, 1) + convolution(256, 256, 1) if attends else 0)


def size_by_hand(styles: int, num_classes: int) -> int:
    """Counted from the description of the network, level by level: 32, 16 and 8 pixels, and back."""
    down = [(128, True, False)] + 3 * [(256, False, False)]
    down += [(256, True, False)] + 4 * [(256, False, True)]
    down += [(256, True, False)] + 4 * [(256, False, False)]
    middle = [(256, False, True), (256, False, False)]
    up = 5 * [(512, True, False)]
    up += [(256, True, False)] + 4 * [(512, True, False)] + [(512, True, True)]
    up += [(256, True, False)] + 4 * [(512, True, False)] + [(384, True, False)]
    embedding = 128 * 512 + 512 + 512 * 512 + 512 + (num_classes * 128 + 128 if num_classes else 0)
    ends = convolution(3, 128, 3) + 2 * 256 + convolution(256, 3, 3)
    return embedding + ends + sum(block_size(c, styles, s, a) for c, s, a in [*down, *middle, *up])


@pytest.mark.parametrize("num_classes", [0, 10])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_the_size_is_the_published_one(normalization: str, num_classes: int) -> None:
    """EDM's has 55.7 million parameters, without labels and with them; a scale beside the shift makes it 60.1."""
    net = on_meta(num_classes, normalization=normalization)
    found = sum(parameter.numel() for parameter in net.parameters())
    published = normalization == "shift"
    assert found == size_by_hand(1 if published else 2, num_classes)
    assert found == (55_732_739 if published else 60_066_563) + (1_408 if num_classes else 0)
    assert found / 1e6 == pytest.approx(55.7 if published else 60.1, rel=1e-3)
