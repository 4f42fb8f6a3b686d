"""Laws that each network of the table keeps, whatever its shape and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from trigflow.core.randomness import SampleRandom
from trigflow.dual import MODES, value_and_tangent
from trigflow.networks import NETWORKS
from trigflow.networks.dropout import Dropout, seeded_dropout
from trigflow.networks.patches import depth_to_space, space_to_depth
from trigflow.system.errors import UserError

UNET: dict[str, Any] = {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
DIT: dict[str, Any] = {"patch": 2, "width": 16, "depth": 2, "heads": 2}
MLP: dict[str, Any] = {"width": 16, "depth": 2}
EDM2: dict[str, Any] = {
    "channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attention_levels": (1,),
    "head_channels": 8,
}
DDPMPP: dict[str, Any] = {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1}
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "mlp-vector": ("mlp", (5,), MLP),
    "mlp-image": ("mlp", (2, 4, 4), MLP),
    "unet-1d": ("unet", (2, 8), UNET),
    "unet-2d": ("unet", (2, 4, 8), UNET | {"attention_levels": (0, 1)}),
    "unet-gain": ("unet", (2, 4, 8), UNET | {"patch": 2, "input_gain": True}),
    "unet-patches": ("unet", (2, 4, 8), UNET | {"patch": 2}),
    "unet-3d": ("unet", (1, 4, 4, 2), UNET | {"middle_attention": False}),
    "ddpmpp-1d": ("ddpmpp", (2, 8), DDPMPP),
    "ddpmpp-2d": ("ddpmpp", (2, 4, 8), DDPMPP | {"attention_levels": (0, 1), "heads": 2}),
    "ddpmpp-3d": ("ddpmpp", (1, 4, 4, 2), DDPMPP),
    "ddpmpp-published": ("ddpmpp", (2, 4, 8), DDPMPP | {"normalization": "shift"}),
    "dit-1d": ("dit", (2, 8), DIT),
    "dit-2d": ("dit", (2, 4, 8), DIT),
    "dit-3d": ("dit", (1, 4, 4, 2), DIT),
    "edm2-1d": ("edm2", (2, 8), EDM2),
    "edm2-2d": ("edm2", (2, 4, 8), EDM2),
    "edm2-3d": ("edm2", (1, 4, 4, 2), EDM2),
    "edm2-published": (
        "edm2",
        (2, 4, 8),
        EDM2 | {"normalization": "edm2", "time_embedding": "fourier", "fourier_scale": 0.5},
    ),
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((case, {}) for case in CASES),
    *((case, {"normalization": "adagn"}) for case in CASES if CASES[case][0] != "edm2"),
    *((case, {"time_embedding": "fourier", "fourier_scale": 0.5}) for case in CASES),
]
B = 3


def build(case: str, num_classes: int = 0, randomized: bool = True, **options: Any) -> nn.Module:
    name, shape, sizes = CASES[case]
    torch.manual_seed(0)
    net = NETWORKS[name](shape, num_classes, **(sizes | options)).double()
    if randomized:
        for parameter in net.parameters():
            nn.init.normal_(parameter, std=0.2)
    return net


def inputs(case: str) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(B, *CASES[case][1], dtype=torch.float64, generator=generator)
    return x, torch.linspace(0.1, 1.5, B, dtype=torch.float64)


def test_every_network_of_the_table_is_tested() -> None:
    assert {name for name, _, _ in CASES.values()} == set(NETWORKS)


@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=str)
def test_the_output_has_the_shape_of_the_input_and_starts_at_zero(case: str, variant: dict[str, Any]) -> None:
    x, t = inputs(case)
    output = build(case, randomized=False, **variant)(x, t)
    assert output.shape == x.shape
    assert torch.equal(output, torch.zeros_like(x))


@pytest.mark.parametrize(("case", "variant"), VARIANTS, ids=str)
def test_the_forward_derivative_is_that_of_finite_differences(case: str, variant: dict[str, Any]) -> None:
    """Fails for anything without a forward derivative: BatchNorm, in-place writes, detached times."""
    net, (x, t) = build(case, **variant), inputs(case)
    dx, dt = torch.randn_like(x), torch.ones_like(t)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        _, derivative = torch.func.jvp(net, (x, t), (dx, dt))
        h = 1e-5
        expected = (net(x + h * dx, t + h * dt) - net(x - h * dx, t - h * dt)) / (2 * h)
    assert derivative.abs().max() > 1e-3
    assert (derivative - expected).abs().max() < 1e-6 * derivative.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_labels_and_the_null_label(case: str) -> None:
    net, (x, t) = build(case, num_classes=4), inputs(case)
    zero, one, null = (net(x, t, torch.full((B,), label)) for label in (0, 1, 4))
    assert not torch.allclose(zero, one)
    assert not torch.allclose(zero, null)
    assert torch.equal(net(x, t), null)


@pytest.mark.parametrize("case", CASES)
def test_labels_without_classes_are_refused(case: str) -> None:
    with pytest.raises(UserError, match="num_classes=0"):
        build(case)(*inputs(case), torch.zeros(B, dtype=torch.int64))


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_gradient(case: str) -> None:
    net, (x, t) = build(case, num_classes=4), inputs(case)
    net(x, t, torch.tensor([0, 1, 2])).square().sum().backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert not missing


@pytest.mark.parametrize("case", CASES)
def test_a_sample_does_not_see_the_others(case: str) -> None:
    net, (x, t) = build(case), inputs(case)
    torch.testing.assert_close(net(x, t)[1:], net(x[1:], t[1:]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES)
def test_forward_leaves_weights_and_inputs_as_they_are(case: str) -> None:
    net, (x, t) = build(case, num_classes=4, dropout=0.5), inputs(case)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x_copy, t_copy = x.clone(), t.clone()
    net(x, t)
    assert torch.equal(x, x_copy) and torch.equal(t, t_copy)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("case", CASES)
def test_seeded_dropout_follows_the_image(case: str) -> None:
    net, (x, t) = build(case, dropout=0.5), inputs(case)
    with seeded_dropout(net, SampleRandom(0, torch.tensor([5, 6, 7]))):
        output = net(x, t)
        with seeded_dropout(net, SampleRandom(0, torch.tensor([7, 5]))):
            torch.testing.assert_close(net(x[[2, 0]], t[[2, 0]]), output[[2, 0]], rtol=1e-10, atol=1e-10)
        assert torch.equal(output, net(x, t))
    with seeded_dropout(net, SampleRandom(1, torch.tensor([5, 6, 7]))):
        assert not torch.allclose(net(x, t), output)
    assert torch.equal(net.eval()(x, t), net(x, t))


def test_dropout_keeps_the_mean_and_the_share() -> None:
    dropout = Dropout(0.25)
    with seeded_dropout(dropout, SampleRandom(0, torch.arange(64))):
        y = dropout(torch.ones(64, 500))
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert y.mean().item() == pytest.approx(1, abs=0.02)
    dropout = Dropout(0.25)  # not seeded: from torch's own generator
    assert not torch.equal(dropout(torch.ones(64, 500)), dropout(torch.ones(64, 500)))


@pytest.mark.parametrize("name", ["unet", "edm2", "ddpmpp"])
@pytest.mark.parametrize("mode", MODES)
def test_each_mode_draws_the_mask_of_a_plain_pass(name: str, mode: str) -> None:
    """Also where images lie in memory with their channels last."""
    net, x = build(f"{name}-2d", dropout=0.5), torch.randn(B, 2, 4, 8, dtype=torch.float64)
    _, t = inputs(f"{name}-2d")
    directions = (torch.randn_like(x), torch.ones_like(t))
    torch.manual_seed(1)
    plain = net(x, t)
    torch.manual_seed(1)
    torch.testing.assert_close(value_and_tangent(net, (x, t), directions, mode=mode).value, plain)


def test_the_positional_embedding_moves_slowly() -> None:
    """The reason for it: the derivative of F with respect to t stays small, where EDM's Fourier features explode."""
    x, t = inputs("mlp-vector")
    speeds = []
    for variant in ({"time_embedding": "positional"}, {"time_embedding": "fourier", "fourier_scale": 16.0}):
        net = build("mlp-vector", **variant)
        _, derivative = torch.func.jvp(lambda t, net=net: net(x, t), (t,), (torch.ones_like(t),))
        speeds.append(derivative.abs().mean().item())
    assert speeds[0] < speeds[1] / 10


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("mlp", {"width": 128, "depth": 3}, 273_280),
        ("unet", {"channels": 24}, 483_601),
        ("edm2", EDM2, 47_481),
        ("ddpmpp", DDPMPP, 52_297),
        ("dit", {"patch": 2, "width": 96, "depth": 3, "heads": 3}, 486_820),
    ],
)
def test_parameter_counts_are_frozen(name: str, options: dict[str, Any], expected: int) -> None:
    net = NETWORKS[name]((1, 8, 8), 10, **options)
    assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "shape", "options", "message"),
    [
        ("unet", (1, 6, 6), {"channel_mult": (1, 2, 2)}, "divisible by 4"),
        ("unet", (1, 8, 8), {"channels": 0}, "channels must be an integer"),
        ("unet", (1, 8, 8), {"attention_levels": (5,)}, "attention_levels"),
        ("ddpmpp", (1, 6, 6), {}, "'ddpmpp' with 3 levels .* divisible by 4"),
        ("ddpmpp", (1, 8, 8), {"channel_mult": (1,)}, "attention_levels: there is no level 1"),
        ("ddpmpp", (1, 8, 8), {"normalization": "edm2"}, "there are: double, adagn, shift"),
        ("ddpmpp", (1, 8, 8), {"channels": 7}, "even"),
        ("ddpmpp", (1, 8, 8), {"channels": 8, "heads": 3}, "heads"),
        ("ddpmpp", (1, 8, 8), {"num_blocks": 0}, "num_blocks must be an integer"),
        ("ddpmpp", (1, 8, 8), {"dropout": -0.1}, "dropout"),
        ("ddpmpp", (8,), {}, "takes data of shape"),
        ("edm2", (1, 12, 12), {}, "'edm2' with 4 levels .* divisible by 8"),
        ("edm2", (1, 8, 8), {"channel_mult": (1, 2)}, "attention_levels: there is no level 2"),
        ("edm2", (1, 8, 8), {"normalization": "adagn"}, "there are: double, edm2"),
        ("edm2", (1, 8, 8), {"channels": 7}, "even"),
        (
            "edm2",
            (1, 8, 8),
            {"channels": 10, "channel_mult": (1,), "attention_levels": (0,), "head_channels": 3},
            "attention heads",
        ),
        ("edm2", (1, 8, 8), {"res_balance": 1.5}, "res_balance must lie between 0 and 1"),
        ("edm2", (1, 8, 8), {"clip_act": 0.0}, "clip_act"),
        ("edm2", (1, 8, 8), {"dropout_resolution": 0}, "dropout_resolution"),
        ("edm2", (8,), {}, "takes data of shape"),
        ("unet", (1, 8, 8), {"normalization": "doubl"}, "did you mean 'double'"),
        ("unet", (5,), {}, "takes data of shape"),
        ("unet", (1, 8, 8), {"channels": 7}, "even"),
        ("dit", (1, 8, 8), {"patch": 3}, "divisible by 3"),
        ("dit", (1, 8, 8), {"width": 16, "heads": 3}, "heads"),
        ("dit", (1, 8, 8), {"dropout": 1.0}, "dropout"),
        ("mlp", (5,), {"time_embedding": "fourrier"}, "did you mean 'fourier'"),
        ("mlp", (), {}, "takes data of shape"),
        ("mlp", (5,), {"depth": 0}, "depth must be an integer"),
    ],
)
def test_options_out_of_range_are_named(
    name: str, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        NETWORKS[name](shape, **options)


@pytest.mark.parametrize("size", [(6,), (4, 6), (2, 4, 6)])
def test_patches_as_channels_and_back(size: tuple[int, ...]) -> None:
    x = torch.randn(2, 3, *size)
    deep = space_to_depth(x, 2)
    assert deep.shape == (2, 3 * 2 ** len(size), *(edge // 2 for edge in size))
    assert torch.equal(depth_to_space(deep, 2), x)
    if len(size) == 2:
        assert torch.equal(deep, nn.functional.pixel_unshuffle(x, 2))
