"""Exact velocities and flow maps, each held to a second, independent derivation."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trigflow.core import flow, oracles
from trigflow.core.oracles import (
    FiniteData,
    Gaussian,
    GaussianMixture,
    mixture2d,
    solve_flow,
)
from trigflow.system.errors import UserError

SIGMA_DATA = 0.5
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def wide(values: list[float] | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def lopsided() -> GaussianMixture:
    """Three components in two dimensions, nothing symmetric."""
    means = wide([[0.4, 0.1], [-0.6, 0.3], [0.0, -0.5]])
    return GaussianMixture(wide([1.0, 2.0, 0.5]), means, wide([[0.1, 0.2], [0.15, 0.15], [0.3, 0.05]]))


def images() -> FiniteData:
    """Seven points of the shape of images."""
    return FiniteData(torch.randn(7, 1, 2, 3, dtype=torch.float64) * SIGMA_DATA)


ORACLES: dict[str, Callable[[], Gaussian | GaussianMixture | FiniteData]] = {
    "gaussian": lambda: Gaussian(wide([0.3, -0.2]), wide([0.2, 0.7])),
    "mixture": lopsided,
    "mixture2d": mixture2d,
    "finite": images,
}


@pytest.fixture(params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> Gaussian | GaussianMixture | FiniteData:
    return ORACLES[request.param]()


# Laws that every oracle keeps


def test_velocity_and_denoiser_are_the_same_knowledge(
    oracle: Gaussian | GaussianMixture | FiniteData,
) -> None:
    t = wide([1e-3, 0.3, 1.0, 1.5, math.pi / 2])
    x_0 = oracle.sample(5).double()
    x_t = flow.interpolate(x_0, SIGMA_DATA * torch.randn_like(x_0), t)
    v, D = oracle.velocity(x_t, t), oracle.denoised(x_t, t)
    torch.testing.assert_close(flow.denoised(x_t, v, t), D, **EXACT)
    z = flow.noise(x_t, v, t)
    torch.testing.assert_close(flow.interpolate(D, z, t), x_t, **EXACT)


def test_the_flow_map_is_constant_along_the_path(oracle: Gaussian | GaussianMixture | FiniteData) -> None:
    """From pi/2 to t and on to 0, against from pi/2 to 0 at once."""
    x_0 = oracle.sample(4)
    x_T = SIGMA_DATA * torch.randn(x_0.shape, dtype=torch.float64)
    late, early = torch.full((2, 4), math.pi / 2, dtype=torch.float64)
    early = 0.4 * early
    x_t = solve_flow(oracle.velocity, x_T, late, t_end=float(early[0]), steps=400)
    torch.testing.assert_close(
        oracle.flow_map(x_t, early, steps=400), oracle.flow_map(x_T, late, steps=400), rtol=0, atol=1e-6
    )


def test_the_flow_map_at_zero_is_the_identity(oracle: Gaussian | GaussianMixture | FiniteData) -> None:
    x_0 = oracle.sample(4).double()
    torch.testing.assert_close(oracle.flow_map(x_0, torch.zeros(4), steps=8), x_0, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_everything_is_finite_at_both_ends_and_far_away(
    name: str, dtype: torch.dtype, device: torch.device
) -> None:
    oracle = ORACLES[name]().to(device)
    x_0 = oracle.sample(6).to(dtype)
    t = torch.tensor([0.0, 1e-30, 1e-6, 1e-3, 1.57, math.pi / 2], device=device)
    for x_t in (x_0, 100 * x_0, x_0 * 0):
        for answer in (oracle.velocity(x_t, t), oracle.denoised(x_t, t), oracle.flow_map(x_t, t, steps=4)):
            assert answer.isfinite().all()
            assert answer.dtype == dtype and answer.shape == x_t.shape and answer.device == x_t.device


def test_an_oracle_stands_in_for_a_frozen_teacher(oracle: Gaussian | GaussianMixture | FiniteData) -> None:
    assert isinstance(oracle, nn.Module)
    assert not list(oracle.parameters()) and oracle.num_classes == 0
    assert all(value.dtype == torch.float64 for value in oracle.to(torch.bfloat16).state_dict().values())
    x_t, t = oracle.sample(3), torch.tensor([0.2, 0.5, 1.0])
    labels = torch.tensor([0, 1, 2])
    assert torch.equal(oracle.velocity(x_t, t, labels=labels), oracle.velocity(x_t, t))
    torch.testing.assert_close(oracle.velocity(x_t, t), oracle.velocity(x_t.double(), t.double()).float())


def test_samples_depend_on_seed_and_number_only(oracle: Gaussian | GaussianMixture | FiniteData) -> None:
    assert torch.equal(oracle.sample(10, seed=3)[:4], oracle.sample(4, seed=3))
    assert not torch.equal(oracle.sample(10, seed=3), oracle.sample(10, seed=4))


def test_samples_have_the_std_of_the_data(oracle: Gaussian | GaussianMixture | FiniteData) -> None:
    x_0 = oracle.sample(20_000)
    std = (x_0 - x_0.mean(0)).square().mean().sqrt().item()
    assert math.isclose(std, oracle.data_std, rel_tol=0.02)


# Gaussian


@settings(deadline=None, max_examples=30)
@given(st.floats(0, math.pi / 2), st.floats(0.05, 3))
def test_a_centred_gaussian_in_closed_form(t: float, s_0: float) -> None:
    oracle = Gaussian(torch.zeros(3), s_0, SIGMA_DATA)
    x_t, ts = torch.randn(2, 3, dtype=torch.float64), wide([t, t])
    cos, sin = math.cos(t), math.sin(t)
    variance = cos**2 * s_0**2 + sin**2 * SIGMA_DATA**2
    v = x_t * cos * sin * (SIGMA_DATA**2 - s_0**2) / variance
    torch.testing.assert_close(oracle.velocity(x_t, ts), v, **EXACT)
    torch.testing.assert_close(oracle.flow_map(x_t, ts), x_t * s_0 / math.sqrt(variance), **EXACT)


def test_the_tangent_of_a_gaussian_s_consistency_function_is_zero() -> None:
    """d/dt f(x_t, t) = grad f . velocity + df/dt, by reverse mode in a random direction."""
    oracle = Gaussian(wide([0.3, -0.2]), wide([0.2, 0.7]))
    x_t, t = (
        torch.randn(4, 2, dtype=torch.float64, requires_grad=True),
        wide([0.1, 0.6, 1.2, 1.5]).requires_grad_(),
    )
    f = oracle.flow_map(x_t, t)
    grad_x, grad_t = torch.autograd.grad((torch.randn_like(f) * f).sum(), (x_t, t))
    tangent = (grad_x * oracle.velocity(x_t, t)).sum(1) + grad_t
    torch.testing.assert_close(tangent, torch.zeros_like(t), **EXACT)


def test_a_standard_gaussian_stands_still() -> None:
    oracle = Gaussian(torch.zeros(2), SIGMA_DATA, SIGMA_DATA)
    x_t = torch.randn(3, 2)
    assert torch.equal(oracle.velocity(x_t, torch.rand(3)), torch.zeros(3, 2))


# Mixture


def log_density(oracle: GaussianMixture, x: Tensor, t: Tensor) -> Tensor:
    """log p_t(x) by torch.distributions."""
    t = t.reshape(-1, 1, 1)
    std = torch.sqrt((t.cos() * oracle.stds) ** 2 + (t.sin() * oracle.sigma_data) ** 2)
    normal = torch.distributions.Independent(torch.distributions.Normal(t.cos() * oracle.means, std), 1)
    weights = torch.distributions.Categorical(logits=oracle.log_weights.expand(len(x), -1))
    return torch.distributions.MixtureSameFamily(weights, normal).log_prob(x)


def test_the_mixture_s_denoiser_obeys_tweedie() -> None:
    """cos(t) E[x_0 | x_t] = x_t + sin(t)^2 sigma_data^2 grad log p_t(x_t)."""
    oracle, t = lopsided(), wide([0.05, 0.4, 0.9, 1.4])
    x_t = torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    (score,) = torch.autograd.grad(log_density(oracle, x_t, t).sum(), x_t)
    expected = (x_t + (t.sin()[:, None] * SIGMA_DATA) ** 2 * score) / t.cos()[:, None]
    torch.testing.assert_close(oracle.denoised(x_t, t), expected.detach(), **EXACT)


def test_equal_components_are_one_gaussian() -> None:
    mean, std = wide([0.2, -0.4, 0.1]), wide([0.3, 0.1, 0.6])
    one = Gaussian(mean, std)
    many = GaussianMixture(wide([1.0, 3.0]), mean.expand(2, 3), std.expand(2, 3))
    x_t, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0, math.pi / 2, 5, dtype=torch.float64)
    torch.testing.assert_close(many.velocity(x_t, t), one.velocity(x_t, t), **EXACT)
    torch.testing.assert_close(many.denoised(x_t, t), one.denoised(x_t, t), **EXACT)
    torch.testing.assert_close(many.flow_map(x_t, t), one.flow_map(x_t, t), rtol=0, atol=1e-7)
    assert math.isclose(many.data_std, one.data_std, rel_tol=1e-12)


def test_in_one_dimension_the_flow_map_keeps_quantiles() -> None:
    """Paths on a line cannot cross, so that the share of the data to the left of a path never changes."""
    oracle = GaussianMixture(wide([1.0, 2.0]), wide([[-0.5], [0.4]]), wide([0.1, 0.2]))

    def quantile(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        std = torch.sqrt((t.cos() * oracle.stds.T) ** 2 + (t.sin() * SIGMA_DATA) ** 2)
        return (oracle.log_weights.exp() * torch.special.ndtr((x - t.cos() * oracle.means.T) / std)).sum(1)

    x_t = torch.linspace(-1, 1, 9, dtype=torch.float64)[:, None]
    for time in (0.3, 1.1, math.pi / 2):
        t = torch.full((9,), time, dtype=torch.float64)
        x_0 = oracle.flow_map(x_t, t)
        torch.testing.assert_close(quantile(x_0, 0 * t), quantile(x_t, t), rtol=0, atol=1e-7)


def test_the_flow_is_solved_to_fourth_order() -> None:
    """Against a solution of 1,000 steps."""
    oracle = mixture2d()
    x_T, t = (
        SIGMA_DATA * torch.randn(32, 2, dtype=torch.float64),
        torch.full((32,), 1.5645, dtype=torch.float64),
    )
    exact = oracle.flow_map(x_T, t, steps=1000)
    errors = [(oracle.flow_map(x_T, t, steps) - exact).square().mean().sqrt().item() for steps in (64, 128)]
    assert abs(math.log2(errors[0] / errors[1]) - 4) < 0.5
    default = (oracle.flow_map(x_T, t) - exact).square().mean(1).sqrt().max().item()
    assert default < 1e-6, "the stated accuracy of the default steps"


def test_samples_start_at_times_of_their_own() -> None:
    oracle, t = mixture2d(), wide([0.2, 1.0, 1.5])
    x_t = torch.randn(3, 2, dtype=torch.float64)
    together = oracle.flow_map(x_t, t)
    for k in range(3):
        torch.testing.assert_close(
            together[k : k + 1], oracle.flow_map(x_t[k : k + 1], t[k : k + 1]), **EXACT
        )


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_mixture2d_is_eight_gaussians_on_a_circle_of_std_sigma_data(sigma_data: float) -> None:
    oracle = mixture2d(sigma_data)
    assert math.isclose(oracle.data_std, sigma_data, rel_tol=1e-12)
    radius = oracle.means.norm(dim=1)
    torch.testing.assert_close(radius, radius[0].expand(8), **EXACT)
    torch.testing.assert_close(oracle.stds, 0.1 * radius[:, None].expand(8, 2), **EXACT)
    x_0 = oracle.sample(20_000)
    nearest = torch.cdist(x_0.double(), oracle.means).argmin(1)
    assert (nearest.bincount(minlength=8) / 20_000 - 1 / 8).abs().max() < 0.01


# Finite data


def test_the_denoiser_of_points_by_brute_force() -> None:
    oracle = images()
    x_t, t = torch.randn(4, 1, 2, 3, dtype=torch.float64), wide([0.2, 0.6, 1.0, 1.5])
    for k in range(4):
        mean = t[k].cos() * oracle.points
        logits = -(x_t[k] - mean).square().flatten(1).sum(1) / (2 * (t[k].sin() * SIGMA_DATA) ** 2)
        expected = torch.einsum("n,nchw->chw", logits.softmax(0), oracle.points)
        torch.testing.assert_close(oracle.denoised(x_t, t)[k], expected, **EXACT)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = images()
    x_t, t = torch.randn(4, 1, 2, 3, dtype=torch.float64), wide([0.01, 0.6, 1.0, 1.5])
    at_once = oracle.velocity(x_t, t)
    for chunk in (1, 2, 100):
        monkeypatch.setattr(oracles, "_CHUNK", chunk)
        torch.testing.assert_close(oracle.velocity(x_t, t), at_once, **EXACT)


def test_points_are_the_limit_of_narrow_gaussians() -> None:
    points = torch.randn(5, 3, dtype=torch.float64)
    narrow = GaussianMixture(torch.ones(5), points, torch.full((5,), 1e-6))
    x_t, t = torch.randn(4, 3, dtype=torch.float64), wide([0.2, 0.6, 1.0, 1.5])
    torch.testing.assert_close(
        FiniteData(points).velocity(x_t, t), narrow.velocity(x_t, t), rtol=0, atol=1e-7
    )
    assert math.isclose(FiniteData(points).data_std, narrow.data_std, rel_tol=1e-6)


def test_every_path_ends_in_a_point() -> None:
    oracle = images()
    x_T = SIGMA_DATA * torch.randn(16, 1, 2, 3)
    x_0 = oracle.flow_map(x_T, torch.full((16,), 1.5645))
    distance = torch.cdist(x_0.flatten(1).double(), oracle.points.flatten(1)).amin(1)
    assert distance.max() < 1e-6
    assert len({round(x, 4) for x in x_0[:, 0, 0, 0].tolist()}) > 1, "not all in the same one"


# Mistakes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(torch.zeros(2), 0.0), "std must be above 0"),
        (lambda: Gaussian(torch.zeros(2), 1.0, sigma_data=-1.0), "sigma_data"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(3, 2), torch.ones(3)), "shapes|weights \\(K,\\)"),
        (lambda: GaussianMixture(torch.ones(2), torch.zeros(2, 2), torch.zeros(2)), "above 0"),
        (lambda: GaussianMixture(torch.tensor([1.0, 0.0]), torch.zeros(2, 2), torch.ones(2)), "above 0"),
        (lambda: FiniteData(torch.zeros(0, 2)), "N >= 1"),
        (lambda: mixture2d().flow_map(torch.zeros(1, 2), torch.ones(1), steps=0), "steps is 0"),
    ],
)
def test_mistakes_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
