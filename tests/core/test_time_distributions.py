"""Distributions of training times: distribution and range."""

from __future__ import annotations

import pytest
import torch

from trigflow.core.flow import T_MAX, sigma_from_t
from trigflow.core.time_distributions import TIME_DISTRIBUTIONS, lognormal, uniform


def test_log_sigma_is_normal() -> None:
    """At the quantiles: the log of sigma_data tan t at u = Phi(k) is P_mean + k P_std."""
    k = torch.linspace(-4, 4, 17, dtype=torch.float64)
    t = lognormal(torch.special.ndtr(k), P_mean=-0.8, P_std=1.6, sigma_data=0.3)
    torch.testing.assert_close(sigma_from_t(t, 0.3).log(), -0.8 + 1.6 * k, rtol=0, atol=1e-9)


def test_many_draws_have_the_mean_and_the_std(device: torch.device) -> None:
    t = lognormal(torch.rand(100_000, device=device), -1.0, 1.4, 0.5)
    log_sigma = sigma_from_t(t.double().cpu(), 0.5).log()
    assert abs(log_sigma.mean() + 1.0) < 0.02
    assert abs(log_sigma.std() - 1.4) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constants", [(-1.0, 1.4, 0.5), (2.0, 3.0, 0.5)])
@pytest.mark.parametrize("name", TIME_DISTRIBUTIONS)
def test_times_keep_dtype_and_range_at_the_ends(
    name: str, constants: tuple[float, float, float], dtype: torch.dtype
) -> None:
    u = torch.tensor([0.0, 0.5, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    t = TIME_DISTRIBUTIONS[name](u, *constants)
    assert t.dtype == dtype and t.shape == (3,)
    assert (t.diff() > 0).all()
    assert t[0] > 0, "a weight of 1/sigma would be infinite"
    assert t[-1] <= torch.tensor(T_MAX, dtype=dtype)


def test_uniform_is_linear() -> None:
    u = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(uniform(u, -1.0, 1.4, 0.5), u * T_MAX)
