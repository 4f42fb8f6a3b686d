"""TrigFlow's maths: rotation laws, inverses, ends of the path, dtypes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trigflow.core import flow
from trigflow.system.errors import UserError

EXACT = {"rtol": 0, "atol": 1e-12}
times = st.floats(0, math.pi / 2)


def ends(t: float | list[float], shape: tuple[int, ...] = (3, 2, 4)) -> tuple[Tensor, Tensor, Tensor]:
    """x_0, z and t in float64."""
    x_0, z = torch.randn(2, *shape, dtype=torch.float64) * 0.5
    return x_0, z, torch.tensor(t, dtype=torch.float64).expand(shape[0])


@settings(deadline=None, max_examples=30)
@given(times)
def test_a_point_and_its_velocity_are_the_ends_rotated(t: float) -> None:
    x_0, z, ts = ends(t)
    x_t, v = flow.interpolate(x_0, z, ts), flow.velocity_target(x_0, z, ts)
    torch.testing.assert_close(flow.denoised(x_t, v, ts), x_0, **EXACT)
    torch.testing.assert_close(flow.noise(x_t, v, ts), z, **EXACT)
    torch.testing.assert_close(x_t**2 + v**2, x_0**2 + z**2, **EXACT)


@settings(deadline=None, max_examples=30)
@given(times, times)
def test_a_ddim_step_keeps_both_ends(t: float, s: float) -> None:
    x_0, z, ts = ends(t)
    x_t, v = flow.interpolate(x_0, z, ts), flow.velocity_target(x_0, z, ts)
    torch.testing.assert_close(flow.ddim_step(x_t, v, ts, s), flow.interpolate(x_0, z, s), **EXACT)
    torch.testing.assert_close(flow.ddim_step(x_t, v, t, 0.0), flow.denoised(x_t, v, t), **EXACT)


def test_the_velocity_is_the_derivative_of_the_path() -> None:
    """Against reverse mode, in a random direction."""
    x_0, z, t = ends([0.1, 0.8, 1.5])
    t, direction = t.clone().requires_grad_(), torch.randn_like(x_0)
    (slope,) = torch.autograd.grad((direction * flow.interpolate(x_0, z, t)).sum(), t)
    expected = (direction * flow.velocity_target(x_0, z, t.detach())).sum((1, 2))
    torch.testing.assert_close(slope, expected, **EXACT)


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-3, math.pi / 2 - 1e-3))
def test_the_velocity_from_the_denoised_end(t: float) -> None:
    x_0, z, ts = ends(t)
    x_t, v = flow.interpolate(x_0, z, ts), flow.velocity_target(x_0, z, ts)
    torch.testing.assert_close(flow.velocity_from_denoised(x_t, x_0, ts), v, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_a_prediction_says_nothing_the_velocity_stays_finite(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, dtype=dtype)
    tiny = torch.tensor([0.0, 1e-30, 1e-9, 1e-8], dtype=dtype)
    assert (flow.velocity_from_denoised(x, flow.denoised(x, x, tiny), tiny).abs() < 10 * x.abs().max()).all()
    assert torch.equal(flow.velocity_from_denoised(x, x, 0.0), torch.zeros_like(x))


@settings(deadline=None, max_examples=30)
@given(st.floats(1e-6, 1e6), st.floats(0.1, 10))
def test_noise_levels_and_times_both_ways(sigma: float, sigma_data: float) -> None:
    t = flow.t_from_sigma(sigma, sigma_data)
    rounding = (
        1e-12 + 1e-15 * sigma / sigma_data
    )  # d sigma / sigma = dt / (sin t cos t), which grows towards pi/2
    assert math.isclose(flow.sigma_from_t(t, sigma_data), sigma, rel_tol=rounding)
    tensor = torch.tensor([sigma], dtype=torch.float64)
    assert math.isclose(flow.t_from_sigma(tensor, sigma_data).item(), t, rel_tol=1e-12)
    assert math.isclose(
        flow.sigma_from_t(flow.t_from_sigma(tensor, sigma_data), sigma_data).item(), sigma, rel_tol=rounding
    )


def test_the_paper_s_times() -> None:
    assert round(flow.t_from_sigma(80.0, 0.5), 4) == 1.5645
    assert round(flow.sigma_from_t(1.1, 0.5), 3) == 0.982


def test_sigma_is_finite_and_positive_where_float32_puts_t_beyond_pi_over_2() -> None:
    t = torch.tensor([math.pi / 2], dtype=torch.float32)
    assert t.double().item() > math.pi / 2, "the rounding that this test is about"
    assert torch.tan(t) < 0
    assert 1e6 < flow.sigma_from_t(t, 0.5).item() < math.inf


def test_numbers_and_tensors_are_the_same_times(device: torch.device) -> None:
    x_0, z = torch.randn(2, 5, 3, device=device)
    t = torch.full((5,), 0.7, device=device)
    for number in (0.7, torch.tensor(0.7, device=device)):
        torch.testing.assert_close(flow.interpolate(x_0, z, number), flow.interpolate(x_0, z, t))
    assert flow.expand(t, x_0).shape == (5, 1)
    assert flow.expand(t, x_0[:, :, None, None]).shape == (5, 1, 1, 1)


def test_coefficients_are_not_rounded_with_the_data() -> None:
    """In bfloat16 cos(1.5645) would be 0.4 % off; only the result is rounded."""
    x, t = torch.ones(1, 1), torch.tensor([1.5645])
    result = flow.interpolate(x.bfloat16(), 0 * x.bfloat16(), t)
    assert result.dtype == torch.bfloat16
    assert result.item() == torch.tensor(math.cos(1.5645)).bfloat16().item()
    wide = flow.interpolate(x.double(), 0 * x.double(), t)
    assert wide.item() == math.cos(t.double().item())
    assert flow.interpolate(x, 0 * x, t.double()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_times_of_a_coarse_dtype_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=r"float32 or torch\.float64"):
        flow.expand(torch.ones(2).to(dtype), torch.ones(2, 3))
