"""EDM2's network: its equations written out, magnitudes, forced weight normalisation, training, published sizes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_loop import new_run, trained, weights
from test_networks import EDM2 as TINY
from torch import Tensor, nn

from trigflow import recipes
from trigflow.dual import MODES, fallbacks, value_and_tangent
from trigflow.models.storage import load_model
from trigflow.networks.dit import DIT_SIZES, DiT
from trigflow.networks.edm2 import EDM2, EDM2_SIZES
from trigflow.networks.edm2_blocks import EDM2Block, EDM2Layout
from trigflow.networks.layers import Dropout
from trigflow.networks.magnitude import MPConv, MPEmbedding, mp_cat, mp_silu, mp_sum
from trigflow.recipes.schema import Recipe

FORMS: dict[str, dict[str, Any]] = {
    "sCM": {},
    "published": {"normalization": "edm2", "time_embedding": "fourier"},
}
each_form = pytest.mark.parametrize("form", FORMS)


# Weights of magnitude 1 end at 1 - eps = 0.9999; the first time, short rows a little further away.
UNIT = 1e-3


def tiny(form: str, shape: tuple[int, ...] = (2, 8, 8), **options: Any) -> EDM2:
    """In float64, with gains that are not zero."""
    torch.manual_seed(0)
    net = EDM2(shape, 3, **(TINY | FORMS[form] | options)).double()
    for parameter in net.parameters():
        if parameter.ndim == 0:
            nn.init.constant_(parameter, 0.7)
    return net


def points(shape: tuple[int, ...] = (2, 8, 8), count: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(count, *shape, dtype=torch.float64)
    return x, torch.linspace(0.1, 1.5, count, dtype=torch.float64), torch.arange(count) % 4


def layers(net: nn.Module) -> dict[str, MPConv]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, MPConv)}


def magnitudes(net: nn.Module) -> Tensor:
    """The root mean square of the weights of each output channel of each layer."""
    return torch.cat(
        [layer.weight.detach().flatten(1).square().mean(1).sqrt() for layer in layers(net).values()]
    )


# The equations of the paper, written out in NumPy, pixel by pixel.


def normalized(x: np.ndarray) -> np.ndarray:
    """A vector of magnitude 1."""
    return x / (1e-4 + np.sqrt(np.mean(x * x)))


def pixels(x: np.ndarray) -> np.ndarray:
    """(C, H, W), the vector of channels of each pixel normalised."""
    return np.stack(
        [[normalized(x[:, i, j]) for j in range(x.shape[2])] for i in range(x.shape[1])]
    ).transpose(2, 0, 1)


def convolved(x: np.ndarray, layer: MPConv, gain: float = 1.0) -> np.ndarray:
    """(C, H, W): the sum over the neighbours of each pixel, zeros outside."""
    weight = layer.weight.detach().numpy()
    weight = np.stack([normalized(w) for w in weight]) * gain / math.sqrt(weight[0].size)
    edge = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (edge // 2,) * 2, (edge // 2,) * 2))
    output = np.zeros((len(weight), *x.shape[1:]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            output[:, i, j] = (weight * padded[None, :, i : i + edge, j : j + edge]).sum((1, 2, 3))
    return output


def linear(v: np.ndarray, layer: MPConv, gain: float = 1.0) -> np.ndarray:
    weight = layer.weight.detach().numpy()
    return np.array([normalized(w) @ v for w in weight]) * gain / math.sqrt(len(v))


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x)) / 0.596


def summed(a: np.ndarray, b: np.ndarray, t: float) -> np.ndarray:
    return ((1 - t) * a + t * b) / np.sqrt((1 - t) ** 2 + t**2)


def attended(x: np.ndarray, layer: Any, heads: int) -> np.ndarray:
    channels, height, width = x.shape
    qkv = convolved(x, layer.qkv).reshape(3, heads, channels // heads, height * width)
    y = np.zeros_like(qkv[0])
    for h in range(heads):
        q, k, v = (
            np.stack([normalized(qkv[part, h, :, n]) for n in range(height * width)]) for part in range(3)
        )
        for n in range(height * width):
            weight = np.exp(k @ q[n] / math.sqrt(channels // heads))
            y[h, :, n] = weight @ v / weight.sum()
    return summed(x, convolved(y.reshape(x.shape), layer.out), 0.3)


def modulated(h: np.ndarray, emb: np.ndarray, layer: Any) -> np.ndarray:
    if layer.gain is not None:
        return h * (linear(emb, layer.style, layer.gain.item()) + 1)[:, None, None]
    s, b = np.split(linear(emb, layer.style), 2)
    return pixels(h) * normalized(s)[:, None, None] + normalized(b)[:, None, None]


def reference(x: np.ndarray, emb: np.ndarray, block: EDM2Block, resample: str, heads: int) -> np.ndarray:
    if resample == "halve":
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    if resample == "double":
        x = x.repeat(2, axis=1).repeat(2, axis=2)
    changes = isinstance(block.skip, MPConv)
    shortcut = convolved(x, block.skip) if changes else x
    if block.down:
        x = shortcut = pixels(shortcut)
    h = modulated(convolved(silu(x), block.branch.conv_1), emb, block.branch.modulation)
    y = summed(shortcut, convolved(silu(h), block.branch.conv_2), 0.3)
    return np.clip(attended(y, block.attention, heads) if heads else y, -2, 2)


@pytest.mark.parametrize("normalization", ["edm2", "double"])
@pytest.mark.parametrize(
    ("c_in", "down", "resample", "heads"),
    [(6, True, "keep", 0), (4, True, "halve", 2), (8, False, "double", 0), (6, False, "keep", 4)],
)
def test_a_block_is_the_papers(normalization: str, c_in: int, down: bool, resample: Any, heads: int) -> None:
    c_out = 8
    plan = EDM2Layout(
        2, (5,), (True,), (0.0,), 1, normalization, c_out // max(heads, 1), 0.3, 0.3, clip_act=2.0
    )
    block = EDM2Block(c_in, c_out, plan, down=down, resample=resample, attention=heads > 0).double()
    if block.branch.modulation.gain is not None:
        nn.init.constant_(block.branch.modulation.gain, 0.7)
    x = torch.randn(2, c_in, 4, 4, dtype=torch.float64)
    emb = torch.randn(2, 5, dtype=torch.float64)
    expected = [reference(a.numpy(), e.numpy(), block, resample, heads) for a, e in zip(x, emb, strict=True)]
    output = block(x, emb)
    assert output.abs().max() == 2  # some are clipped
    torch.testing.assert_close(output, torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("label", [0, 2, 3])
def test_the_embedding_is_the_papers(label: int) -> None:
    """The null label, 3, is a row of zeros, and so is no label."""
    embedding = MPEmbedding(6, 5, 3, 0.5, "fourier", 1.0).double()
    t, one_hot = 0.4, np.array([float(label == c) for c in range(3)])
    waves = math.sqrt(2) * np.cos(t * embedding.time.frequencies.numpy() + embedding.time.phases.numpy())
    label_term = linear(one_hot * math.sqrt(3), embedding.label)
    expected = torch.from_numpy(silu(summed(linear(waves, embedding.linear), label_term, 0.5)))
    times = torch.tensor([t], dtype=torch.float64)
    torch.testing.assert_close(embedding(times, torch.tensor([label]))[0], expected, rtol=0, atol=1e-12)
    if label == 3:
        torch.testing.assert_close(embedding(times, None)[0], expected, rtol=0, atol=1e-12)


# Magnitudes.


def test_functions_keep_the_magnitude() -> None:
    a, b = torch.randn(2, 100, 64, 8, 8)
    for y in (
        mp_silu(a),
        mp_sum(a, b, 0.3),
        mp_cat(a, b[:, :16], 0.5),
        MPConv(64, 64, (3, 3))(a)[..., 1:-1, 1:-1],
    ):
        assert y.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)
    halves = mp_cat(a, b[:, :16], 0.5)
    shares = [half.square().sum().item() for half in (halves[:, :64], halves[:, 64:])]
    assert shares[0] == pytest.approx(shares[1], rel=0.02)


@each_form
def test_magnitudes_stay_through_a_deep_random_network(form: str) -> None:
    """45 blocks, no learned scale, no group norm: what leaves a block has about the magnitude of what entered."""
    sizes = {
        "channels": 24,
        "channel_mult": (1, 2, 2),
        "num_blocks": 6,
        "attention_levels": (2,),
        "head_channels": 16,
    }
    net = EDM2((3, 16, 16), 3, **(sizes | FORMS[form]))
    nn.init.ones_(net.gain_out)
    found: dict[str, float] = {}
    for name, module in net.named_modules():
        if isinstance(module, EDM2Block):
            module.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.std().item()}))
    with torch.no_grad():
        output = net(torch.randn(8, 3, 16, 16), torch.linspace(0.1, 1.5, 8), torch.arange(8) % 3)
    assert len(found) == 45
    assert min(found.values()) > 0.7 and max(found.values()) < 1.5
    assert 0.7 < output.std().item() < 1.4


# Forced weight normalisation.


@each_form
def test_forced_normalisation_gives_unit_weights_and_keeps_the_function(form: str) -> None:
    net, (x, t, labels) = tiny(form), points()
    assert (magnitudes(net) - 1).abs().max() < UNIT  # the constructor has done it once
    before = net(x, t, labels)
    net.normalize_weights()
    torch.testing.assert_close(net(x, t, labels), before, rtol=0, atol=1e-7)
    once = [layer.weight.clone() for layer in layers(net).values()]
    net.normalize_weights()
    for layer, weight in zip(layers(net).values(), once, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=1e-7, atol=0)


@each_form
def test_the_length_of_a_weight_does_not_matter(form: str) -> None:
    """So the average of the weights, which is shorter, is the same function before and after normalisation."""
    net, (x, t, labels) = tiny(form), points()
    before = net(x, t, labels)
    with torch.no_grad():
        for layer in layers(net).values():
            layer.weight.mul_(0.6 + torch.rand(len(layer.weight), *(1,) * (layer.weight.ndim - 1)))
    scaled = net(x, t, labels)
    torch.testing.assert_close(scaled, before, rtol=0, atol=2e-3)  # eps = 1e-4 in each layer
    net.normalize_weights()
    assert (magnitudes(net) - 1).abs().max() < UNIT
    torch.testing.assert_close(net(x, t, labels), scaled, rtol=0, atol=2e-3)


@each_form
def test_gradients_are_orthogonal_to_the_weights(form: str) -> None:
    net, (x, t, labels) = tiny(form), points()
    net(x, t, labels).square().sum().backward()
    for layer in layers(net).values():
        weight, gradient = layer.weight.flatten(1), layer.weight.grad.flatten(1)  # type: ignore[union-attr]
        cosine = (weight * gradient).sum(1) / (weight.norm(dim=1) * gradient.norm(dim=1)).clamp_min(1e-30)
        assert cosine.abs().max() < 1e-2  # eps leaves this much of the radial part


@each_form
@pytest.mark.parametrize("training", [True, False])
def test_forward_does_not_write_a_weight(form: str, training: bool) -> None:
    net, (x, t, labels) = tiny(form).train(training), points()
    with torch.no_grad():
        for layer in layers(net).values():
            layer.weight.mul_(3)
    versions = [parameter._version for parameter in net.parameters()]
    values = [parameter.clone() for parameter in net.parameters()]
    for mode in MODES:
        value_and_tangent(net, (x, t), (x, t), mode=mode, cond={"labels": labels})
    assert versions == [parameter._version for parameter in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(values, net.parameters(), strict=True))


@each_form
def test_modes_agree(form: str) -> None:
    net, (x, t, labels) = tiny(form), points()
    directions = (torch.randn_like(x), torch.ones_like(t))
    found = {}
    for mode in MODES:
        with fallbacks() as names:
            found[mode] = value_and_tangent(
                net, (x, t), directions, mode=mode, cond={"labels": labels}
            ).tangent
        assert not names
    exact = found["func"]
    assert (found["dual"] - exact).norm() <= 1e-12 * exact.norm()
    assert (found["finite_difference"] - exact).norm() <= 1e-7 * exact.norm()


def test_the_derivative_compiles_in_one_graph() -> None:
    net, (x, t, _) = tiny("sCM", channel_mult=(1,), attention_levels=(0,)), points()

    def along(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        output = value_and_tangent(net, (x, t), (torch.ones_like(x), torch.ones_like(t)))
        return output.value, output.tangent

    compiled = torch.compile(along, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t), along(x, t))


def test_half_precision_is_close() -> None:
    net, (x, t, labels) = tiny("sCM").float(), points()
    x, t = x.float(), t.float()
    with torch.autocast("cpu", torch.bfloat16):
        output = net(x, t, labels)
    assert (output - net(x, t, labels)).norm() < 0.03 * output.norm()


def test_dropout_acts_at_low_resolutions_only() -> None:
    net = EDM2((1, 64, 64), channels=2, num_blocks=1, dropout=0.4, dropout_resolution=16)
    found = {name: layer.p for name, layer in net.named_modules() if isinstance(layer, Dropout)}
    sizes: dict[str, int] = {}
    for name, module in net.named_modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _, x, __, name=name: sizes.update({name: x[0].shape[-1]}))
    net(torch.randn(1, 1, 64, 64), torch.ones(1))
    assert set(sizes.values()) == {64, 32, 16, 8} and sizes.keys() == found.keys()
    assert all(p == (0.4 if sizes[name] <= 16 else 0.0) for name, p in found.items())


# Training.


def recipe(*overrides: str) -> Recipe:
    """Steps of 8 digits."""
    options = [
        f"network.{key}={list(value) if isinstance(value, tuple) else value}" for key, value in TINY.items()
    ]
    loop = ["train.batch=8", "train.total_nimg=48", "train.log_nimg=16", "train.checkpoint_nimg=16"]
    quiet = ["train.tensorboard=false", "train.synthetic=0", "sampling.grid_nimg=0", "sampling.steps=2"]
    steps = ["optimizer.name=adam", "optimizer.schedule=constant", "optimizer.lr=0.1"]
    return recipes.get("digits-teacher", ["network=edm2", *options, *loop, *quiet, *steps, *overrides])


@pytest.mark.parametrize("normalization", ["double", "edm2"])
def test_the_loop_keeps_weights_normalised(tmp_path: Path, normalization: str) -> None:
    run = new_run(recipe(f"network.normalization={normalization}"), tmp_path)
    net = run.main.net.network
    start = [layer.weight.clone() for layer in layers(net).values()]
    for _ in range(4):  # the output's gain moves first, then all behind it, then the embedding
        run._step()
        assert (magnitudes(net) - 1).abs().max() < UNIT
    assert not any(torch.equal(a, b.weight) for a, b in zip(start, layers(net).values(), strict=True))


def test_a_resumed_run_is_that_of_a_run_without_a_stop(tmp_path: Path) -> None:
    trained(recipe(), tmp_path / "whole")
    trained(recipe("train.total_nimg=24"), tmp_path / "parts")
    trained(recipe(), tmp_path / "parts", resume=True)
    pairs = zip(weights(tmp_path / "whole").values(), weights(tmp_path / "parts").values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_student_starts_from_the_normalised_average_of_its_teacher(tmp_path: Path) -> None:
    """An average of unit weights is shorter than they are, but the same function."""
    trained(recipe("ema.halflife_nimg=24", "ema.rampup_ratio=null"), tmp_path / "teacher")
    teacher = load_model(tmp_path / "teacher")[0]
    assert magnitudes(teacher).max() < 1 and magnitudes(teacher).min() < 1 - UNIT
    student = new_run(recipe(f"init={tmp_path / 'teacher'}"), tmp_path / "student").main.net.eval()
    assert (magnitudes(student) - 1).abs().max() < UNIT
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.3, 1.2])
    torch.testing.assert_close(student(x, t), teacher(x, t), rtol=0, atol=2e-3)


# Published sizes.


def parameters(kind: Any, *args: Any, **options: Any) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in kind(*args, **options).parameters())


# Millions of parameters at 64x64x4 latents with 1,000 classes: as published, and with sCM's normalisation.
EDM2_COUNTS = {
    "S": (280.2, 293.9),
    "M": (497.8, 522.2),
    "L": (777.6, 815.6),
    "XL": (1119.4, 1174.1),
    "XXL": (1523.4, 1597.8),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", EDM2_SIZES)
def test_sizes_of_edm2_are_the_published_ones(size: str, form: str) -> None:
    found = parameters(EDM2, (4, 64, 64), 1000, channels=EDM2_SIZES[size], **FORMS[form])
    assert found / 1e6 == pytest.approx(EDM2_COUNTS[size][form == "sCM"], rel=1e-3)


# Millions of parameters at 32x32x4 latents with 1,000 classes: ours, and those of DiT with patches of 2.
DIT_COUNTS = {"S": (29.5, 33), "B": (116.7, 130), "L": (408.5, 458), "XL": (601.8, 675)}


@pytest.mark.parametrize("size", DIT_SIZES)
def test_sizes_of_the_dit_are_a_tenth_below_the_published_ones(size: str) -> None:
    """Our blocks start at zero by their last layers, DiT's by gates, which are a third of its modulation."""
    ours, published = DIT_COUNTS[size]
    found = parameters(DiT, (4, 32, 32), 1000, **DIT_SIZES[size]) / 1e6
    assert found == pytest.approx(ours, abs=0.05)
    width, depth = DIT_SIZES[size]["width"], DIT_SIZES[size]["depth"]
    gates = depth * 2 * width * (width + 1) / 1e6
    assert found + gates == pytest.approx(published, rel=0.02)
