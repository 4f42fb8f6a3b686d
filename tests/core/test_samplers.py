"""Samplers: the original algorithms in their own variables, diffusers' schedulers, orders of convergence, cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from trigflow.core import flow
from trigflow.core.oracles import Gaussian, GaussianMixture, mixture2d, solve_flow
from trigflow.core.samplers import (
    SAMPLERS,
    CountNFE,
    Sampler,
    find_sampler,
    sample,
    sample_consistency,
    sample_ddim,
    sample_dpmpp_2m,
    sample_flow_map,
    sample_heun,
)
from trigflow.core.time_grids import consistency_times, edm_times, flow_map_times
from trigflow.system.errors import UserError

SIGMA_DATA = 0.5
ODE_SAMPLERS = {name: sampler.function for name, sampler in SAMPLERS.items() if sampler.kind == "teacher"}
ONE_TIME = [name for name, sampler in SAMPLERS.items() if not sampler.second_time]


def start(n: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    return SIGMA_DATA * torch.randn(n, 2, dtype=dtype)


def at(t: float, n: int = 8) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def no_noise(step: int) -> Tensor:
    raise AssertionError("an ODE sampler draws nothing")


# Time grids


def test_consistency_times_of_the_paper() -> None:
    t_max = math.atan(160)
    assert consistency_times(1) == [t_max]
    assert consistency_times(2) == pytest.approx([t_max, 1.1], abs=1e-12)
    assert np.diff(consistency_times(5)) == pytest.approx(4 * [(1.1 - t_max) / 4])
    assert consistency_times(2, sigma_data=1.0, t_mid=0.8) == pytest.approx([math.atan(80), 0.8])


@pytest.mark.parametrize("steps", [1, 2, 18])
def test_edm_times_are_edm_s_noise_levels(steps: int) -> None:
    sigmas = [flow.sigma_from_t(t, SIGMA_DATA) for t in edm_times(steps)]
    ramp = np.linspace(0, 1, steps)
    expected = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert sigmas == pytest.approx([*expected, 0.0], rel=1e-9)


@pytest.mark.parametrize("steps", [0, -3])
@pytest.mark.parametrize("grid", [consistency_times, edm_times])
def test_fewer_than_one_step_is_a_mistake(grid: Callable[[int], list[float]], steps: int) -> None:
    with pytest.raises(UserError, match=f"steps is {steps}: give 1 or more"):
        grid(steps)


def test_mistakes_in_a_grid_are_named() -> None:
    with pytest.raises(UserError, match="t_mid"):
        consistency_times(2, t_mid=1.57)
    with pytest.raises(UserError, match="sigma_min"):
        edm_times(3, sigma_min=90.0)
    with pytest.raises(UserError, match="rho"):
        edm_times(3, rho=0.0)


@pytest.mark.parametrize("sampler", ODE_SAMPLERS.values(), ids=ODE_SAMPLERS)
@pytest.mark.parametrize(
    ("ts", "message"),
    [
        ([1.0], "2 or more"),
        ([1.0, 1.2], "descend"),
        ([1.6, 0.0], "lie in"),
        ([1.0, -0.1], "lie in"),
        ([math.nan, 0], "descend"),
    ],
)
def test_a_foreign_grid_is_refused(sampler: Callable[..., Tensor], ts: list[float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sampler(mixture2d().velocity, start(), ts)


def test_grids_that_one_sampler_cannot_use() -> None:
    with pytest.raises(UserError, match="lie in"):
        sample_heun(mixture2d().velocity, start(), [flow.T_MAX, 0.0])
    with pytest.raises(UserError, match="lie in"):
        sample_consistency(mixture2d().velocity, start(), [1.0, 0.0], torch.randn, SIGMA_DATA)
    with pytest.raises(UserError, match="1 or more"):
        sample_consistency(mixture2d().velocity, start(), [], torch.randn, SIGMA_DATA)


# Consistency sampling


def test_one_step_is_the_consistency_function() -> None:
    oracle, x_T = mixture2d(), start()
    (t,) = consistency_times(1)
    x_0 = sample_consistency(oracle.velocity, x_T, [t], no_noise, SIGMA_DATA)
    torch.testing.assert_close(x_0, oracle.denoised(x_T, at(t)), rtol=0, atol=1e-12)


def test_two_steps_by_hand() -> None:
    oracle, x_T, z = mixture2d(), start(), torch.randn(8, 2, dtype=torch.float64)
    x_hat = flow.denoised(x_T, oracle.velocity(x_T, at(1.5)), 1.5)
    x_mid = math.cos(1.1) * x_hat + math.sin(1.1) * SIGMA_DATA * z
    expected = oracle.denoised(x_mid, at(1.1))
    drawn: list[int] = []

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return z

    x_0 = sample_consistency(oracle.velocity, x_T, [1.5, 1.1], noise, SIGMA_DATA)
    torch.testing.assert_close(x_0, expected, rtol=0, atol=1e-12)
    assert drawn == [1]


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_an_exact_consistency_model_samples_the_data_at_any_number_of_steps(steps: int) -> None:
    """For a Gaussian f = mean + s/sqrt(variance) (x - cos t mean), whatever the noise: the std must come out."""
    oracle = Gaussian(torch.tensor([0.3, -0.1]), 0.2, SIGMA_DATA)

    def consistency_velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return flow.velocity_from_denoised(x_t, oracle.flow_map(x_t, t), t)

    x_T = start(20_000)
    x_0 = sample(
        "consistency",
        consistency_velocity,
        x_T,
        steps,
        noise=lambda _: torch.randn(20_000, 2),
        sigma_data=0.5,
    )
    torch.testing.assert_close(x_0.mean(0), oracle.mean, rtol=0, atol=0.01)
    torch.testing.assert_close(x_0.std(0), oracle.std, rtol=0.02, atol=0)


@pytest.mark.parametrize("shape", [(1,), (2,), (20_000, 1), (1, 2)])
def test_noise_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    """Broadcast it would be the same for all samples, and their std about half of what the proper noise gives."""
    oracle = Gaussian(torch.zeros(2), 0.5, SIGMA_DATA)

    def consistency_velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return flow.velocity_from_denoised(x_t, oracle.flow_map(x_t, t), t)

    x_T, ts = start(20_000), consistency_times(2)
    x_0 = sample_consistency(
        consistency_velocity, x_T, ts, lambda _: torch.randn(20_000, 2), sigma_data=SIGMA_DATA
    )
    torch.testing.assert_close(x_0.std(0), oracle.std, rtol=0.02, atol=0)
    with pytest.raises(
        UserError, match=r"noise\(1\) has the shape .*: give a number for each of x_T, \(20000, 2\)"
    ):
        sample_consistency(consistency_velocity, x_T, ts, lambda _: torch.randn(shape), sigma_data=SIGMA_DATA)


# The original algorithms in EDM's variables


def edm_denoiser(oracle: GaussianMixture) -> Callable[[Tensor, float], Tensor]:
    def D(x_sigma: Tensor, sigma: float) -> Tensor:
        t = flow.t_from_sigma(sigma, SIGMA_DATA)
        return oracle.denoised(x_sigma * math.cos(t), torch.full((len(x_sigma),), t, dtype=x_sigma.dtype))

    return D


def edm_euler(D: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * (x - D(x, sigma)) / sigma
    return x


def edm_heun(D: Callable[[Tensor, float], Tensor], x: Tensor, sigmas: list[float]) -> Tensor:
    """Karras et al. (2022), algorithm 1 without churn."""
    for sigma, following in pairwise(sigmas):
        d = (x - D(x, sigma)) / sigma
        x_next = x + (following - sigma) * d
        if following > 0:
            d_next = (x_next - D(x_next, following)) / following
            x_next = x + (following - sigma) * (d + d_next) / 2
        x = x_next
    return x


@pytest.mark.parametrize(("sampler", "original"), [(sample_ddim, edm_euler), (sample_heun, edm_heun)])
@pytest.mark.parametrize("steps", [1, 2, 18])
def test_edm_s_algorithms_exactly(
    sampler: Callable[..., Tensor], original: Callable[..., Tensor], steps: int
) -> None:
    oracle, x_T, ts = mixture2d(), start(), edm_times(steps)
    sigmas = [flow.sigma_from_t(t, SIGMA_DATA) for t in ts]
    expected = original(edm_denoiser(oracle), x_T / math.cos(ts[0]), sigmas)
    torch.testing.assert_close(sampler(oracle.velocity, x_T, ts), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_one_step_to_zero_is_the_denoiser(name: str) -> None:
    oracle, x_T = mixture2d(), start()
    x_0 = ODE_SAMPLERS[name](oracle.velocity, x_T, [1.2, 0.0])
    torch.testing.assert_close(x_0, oracle.denoised(x_T, at(1.2)), rtol=0, atol=1e-12)


# diffusers' schedulers


def to_diffusers_edm(scheduler_name: str, steps: int, x_T: Tensor) -> Tensor:
    """The loop of a diffusers pipeline with an EDM network, F_EDM = -F_TrigFlow."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, scheduler_name)(sigma_data=SIGMA_DATA)
    scheduler.set_timesteps(steps)
    x = x_T / math.cos(flow.t_from_sigma(80.0, SIGMA_DATA))
    for sigma, timestep in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        x_t = scheduler.scale_model_input(x, timestep) * SIGMA_DATA
        t = torch.full((len(x),), flow.t_from_sigma(sigma, SIGMA_DATA), dtype=torch.float64)
        F_edm = -mixture2d().velocity(x_t, t) / SIGMA_DATA
        x = scheduler.step(F_edm, timestep, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [2, 10, 30])
@pytest.mark.parametrize(
    ("sampler", "name"),
    [(sample_ddim, "EDMEulerScheduler"), (sample_dpmpp_2m, "EDMDPMSolverMultistepScheduler")],
)
def test_diffusers_edm_schedulers(sampler: Callable[..., Tensor], name: str, steps: int) -> None:
    x_T = start(dtype=torch.float32)
    ours = sampler(mixture2d().velocity, x_T.double(), edm_times(steps))
    torch.testing.assert_close(ours.float(), to_diffusers_edm(name, steps, x_T), rtol=0, atol=1e-5)


# The warning is diffusers' own, under NumPy 2.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("steps", [5, 10, 30])
def test_diffusers_heun(steps: int) -> None:
    """Its DDPM noise levels are sigma/alpha; the evaluations in the middle of a step come with its doubled grid."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    levels = scheduler.sigmas.double().unique().flip(0).tolist()
    x_T, velocity = start(), CountNFE(mixture2d().velocity)
    ts = [flow.t_from_sigma(sigma, SIGMA_DATA) for sigma in levels]
    ours = sample_heun(velocity, x_T, ts)
    x = x_T / math.cos(ts[0])
    for sigma, timestep in zip(scheduler.sigmas.tolist(), scheduler.timesteps, strict=False):
        t = flow.t_from_sigma(sigma, SIGMA_DATA)
        x_t = x * math.cos(t)
        z = flow.noise(x_t, mixture2d().velocity(x_t, at(t)), t)
        x = scheduler.step(z / SIGMA_DATA, timestep, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=0, atol=1e-5)
    assert velocity.nfe == len(scheduler.timesteps) == 2 * steps - 1


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_diffusers_consistency(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    scheduler, ts = diffusers.SCMScheduler(sigma_data=SIGMA_DATA), consistency_times(steps)
    scheduler.set_timesteps(
        steps, timesteps=[*ts, 0.0], max_timesteps=None, intermediate_timesteps=None if steps != 2 else 1.3
    )
    x_T, theirs, ours = start(dtype=torch.float32), torch.Generator(), torch.Generator()
    theirs.manual_seed(5), ours.manual_seed(5)
    x_0 = sample_consistency(
        mixture2d().velocity, x_T, ts, lambda _: torch.randn(8, 2, generator=ours), SIGMA_DATA
    )
    x = x_T
    for t in scheduler.timesteps[:-1]:
        v = mixture2d().velocity(x, t.expand(8))
        x = scheduler.step(v, t, x, generator=theirs).prev_sample
    torch.testing.assert_close(x_0, x, rtol=0, atol=1e-5)


# Orders of convergence


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    """The slope of log error over log steps on an exact velocity, between two times where nothing is special."""
    oracle = GaussianMixture(torch.ones(2), torch.tensor([[-0.4, 0.2], [0.3, 0.1]]), torch.tensor([0.3, 0.2]))
    x_T, first, last = start(64), 1.4, 0.2
    t = torch.full((64,), first, dtype=torch.float64)
    exact = solve_flow(oracle.velocity, x_T, t, t_end=last, steps=400)
    counts, errors = [40, 80, 160, 320], []
    for steps in counts:
        ts = np.linspace(first, last, steps + 1).tolist()
        errors.append((ODE_SAMPLERS[name](oracle.velocity, x_T, ts) - exact).square().mean().sqrt().item())
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(-slope - order) < 0.15


@pytest.mark.parametrize("name", ODE_SAMPLERS)
def test_many_steps_reach_the_flow_map(name: str) -> None:
    oracle = Gaussian(torch.tensor([0.3, -0.1]), torch.tensor([0.2, 0.6]), SIGMA_DATA)
    x_T, ts = start(), edm_times(400)
    exact = oracle.flow_map(x_T, torch.full((8,), ts[0], dtype=torch.float64))
    x_0 = sample(name, oracle.velocity, x_T, 400, noise=no_noise, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(x_0, exact, rtol=0, atol=1e-2 if name == "ddim" else 1e-4)


# A second time


def gaussian_flow_map(x_t: Tensor, t: Tensor, s: Tensor, std: float = 0.3) -> Tensor:
    """The exact average velocity of N(0, std^2) between t and s: x_s = x_t sigma(s)/sigma(t)."""

    def sigma(time: Tensor) -> Tensor:
        return ((time.cos() * std).square() + (time.sin() * SIGMA_DATA).square()).sqrt()[:, None]

    x_s = x_t * sigma(s) / sigma(t)
    return ((t - s).cos()[:, None] * x_t - x_s) / (t - s).sin()[:, None]


@pytest.mark.parametrize("ts", [[1.5, 0.0], [1.5, 1.1, 0.0], [1.2, 0.9, 0.4, 0.1]])
def test_a_flow_map_is_exact_on_any_grid(ts: list[float]) -> None:
    x_T, seen = start(), []
    x_s = sample_flow_map(gaussian_flow_map, x_T, ts, lambda t, x_t, x_s: seen.append((t, x_t, x_s)))
    exact = Gaussian(torch.zeros(2).double(), torch.full((2,), 0.3, dtype=torch.float64), SIGMA_DATA)
    from_start, from_end = (exact.flow_map(x, at(t)) for x, t in ((x_T, ts[0]), (x_s, ts[-1])))
    torch.testing.assert_close(from_start, from_end, rtol=0, atol=1e-12)
    assert [t for t, _, _ in seen] == ts[:-1] and torch.equal(seen[-1][2], x_s)


def test_a_flow_map_on_its_own_grid() -> None:
    assert flow_map_times(2) == [*consistency_times(2), 0.0]
    x_T = start()
    x_0 = sample("flow_map", gaussian_flow_map, x_T, 2, noise=no_noise, sigma_data=SIGMA_DATA)
    torch.testing.assert_close(x_0, sample_flow_map(gaussian_flow_map, x_T, flow_map_times(2)))


# Samplers of the user's own

half_way = Sampler(
    lambda velocity, x_T, ts, sigma_data: sigma_data * x_T + ts[-1], lambda steps, _: [1.0] * steps
)


def test_a_sampler_gets_what_it_names() -> None:
    assert find_sampler("test_samplers:half_way") is half_way
    x_T = start()
    x_0 = sample("test_samplers:half_way", mixture2d().velocity, x_T, 3, noise=no_noise, sigma_data=0.5)
    torch.testing.assert_close(x_0, 0.5 * x_T + 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("euler", "unknown sampler 'euler'"),
        ("test_samplers:start", "no trigflow.samplers.Sampler"),
        ("test_samplers:nothing", "no class or function 'nothing'"),
        ("nowhere:sampler", "cannot import nowhere"),
    ],
)
def test_no_sampler(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_sampler(name)


one_of_many = Sampler(lambda velocity, x_T, ts: x_T[:1], lambda steps, _: [1.0])
no_tensor = Sampler(lambda velocity, x_T, ts: None, lambda steps, _: [1.0])


@pytest.mark.parametrize(
    ("name", "message"), [("one_of_many", r"the shape \(1, 2\)"), ("no_tensor", "a NoneType")]
)
def test_a_sampler_that_returns_something_else_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample(f"test_samplers:{name}", mixture2d().velocity, start(), 3, noise=no_noise, sigma_data=0.5)


def test_mistakes_in_a_sampler() -> None:
    with pytest.raises(UserError, match="kind of sampler 'techer'"):
        Sampler(sample_ddim, kind="techer")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give a function"):
        Sampler(sample_ddim, "teacher")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="give its name"):
        find_sampler(half_way)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no parameter on_step"):
        half_way(mixture2d().velocity, start(), 1, noise=no_noise, sigma_data=0.5, on_step=lambda *_: None)
    with pytest.raises(UserError, match="is a float"):
        sample("consistency", mixture2d().velocity, start(), 2, noise=lambda _: 0.3, sigma_data=0.5)  # type: ignore[arg-type,return-value]


# Cost, hooks, dtypes


@pytest.mark.parametrize(("name", "nfe"), [("consistency", 5), ("ddim", 5), ("heun", 9), ("dpmpp_2m", 5)])
def test_nfe(name: str, nfe: int) -> None:
    velocity = CountNFE(mixture2d().velocity)
    sample(name, velocity, start(), 5, noise=lambda _: torch.randn(8, 2), sigma_data=SIGMA_DATA)
    assert velocity.nfe == nfe


@pytest.mark.parametrize("name", ONE_TIME)
def test_on_step_sees_the_path(name: str) -> None:
    oracle, x_T = mixture2d(), start()
    seen: list[tuple[float, Tensor, Tensor]] = []

    def remember(t: float, x_t: Tensor, x_0: Tensor) -> None:
        seen.append((t, x_t, x_0))

    x_0 = sample(
        name,
        oracle.velocity,
        x_T,
        4,
        noise=lambda _: torch.randn(8, 2),
        sigma_data=SIGMA_DATA,
        on_step=remember,
    )
    grid = consistency_times(4) if name == "consistency" else edm_times(4)[:-1]
    assert [t for t, _, _ in seen] == grid
    assert torch.equal(seen[0][1], x_T)
    torch.testing.assert_close(seen[-1][2], x_0)  # the last step is the denoised sample
    for t, x_t, guess in seen:
        torch.testing.assert_close(guess, oracle.denoised(x_t, at(t)), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_keep_dtype_device_and_shape(name: str, dtype: torch.dtype, device: torch.device) -> None:
    x_T = torch.randn(3, 1, 4, 4, device=device).to(dtype)
    times: list[Tensor] = []

    def velocity(x_t: Tensor, t: Tensor, s: Tensor | None = None) -> Tensor:
        times.extend([t] if s is None else [t, s])
        return 0.1 * x_t

    x_0 = sample(
        name, velocity, x_T, 3, noise=lambda _: torch.randn(x_T.shape, device=device), sigma_data=0.5
    )
    assert x_0.dtype == dtype and x_0.shape == x_T.shape and x_0.device == x_T.device
    assert all(t.shape == (3,) and t.dtype == torch.float32 and t.device == x_T.device for t in times)


@pytest.mark.parametrize("name", ONE_TIME)
def test_float32_agrees_with_float64(name: str) -> None:
    oracle, x_T, z = mixture2d(), start(), torch.randn(8, 2, dtype=torch.float64)
    wide, narrow = (
        sample(name, oracle.velocity, x, 12, noise=lambda _: z, sigma_data=SIGMA_DATA)
        for x in (x_T, x_T.float())
    )
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-4)


def test_gradients_reach_the_noise() -> None:
    x_T = start().requires_grad_()
    sample_heun(mixture2d().velocity, x_T, edm_times(3)).sum().backward()
    assert x_T.grad is not None and x_T.grad.abs().sum() > 0


def test_an_unknown_sampler_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'heun'"):
        sample("huen", mixture2d().velocity, start(), 2, noise=no_noise, sigma_data=SIGMA_DATA)
    with pytest.raises(UserError, match="steps is 0"):
        sample("heun", mixture2d().velocity, start(), 0, noise=no_noise, sigma_data=SIGMA_DATA)
