"""Distributions of training times: distribution, range, fields."""

from __future__ import annotations

import math

import pytest
import torch

from trigflow.core.flow import T_MAX, sigma_from_t
from trigflow.core.time_distributions import LogNormal, Uniform
from trigflow.system.errors import UserError


def test_log_sigma_is_normal() -> None:
    """At the quantiles: the log of sigma_data tan t at u = Phi(k) is P_mean + k P_std."""
    distribution = LogNormal(P_mean=-0.8, P_std=1.6, sigma_data=0.3)
    k = torch.linspace(-4, 4, 17, dtype=torch.float64)
    t = distribution(torch.special.ndtr(k))
    torch.testing.assert_close(sigma_from_t(t, 0.3).log(), -0.8 + 1.6 * k, rtol=0, atol=1e-9)


def test_many_draws_have_the_mean_and_the_std(device: torch.device) -> None:
    t = LogNormal(-1.0, 1.4)(torch.rand(100_000, device=device))
    log_sigma = sigma_from_t(t.double().cpu(), 0.5).log()
    assert abs(log_sigma.mean() + 1.0) < 0.02
    assert abs(log_sigma.std() - 1.4) < 0.02


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("distribution", [LogNormal(), LogNormal(2.0, 3.0), Uniform(), Uniform(0.2, 1.0)])
def test_times_keep_dtype_and_range_at_the_ends(
    distribution: LogNormal | Uniform, dtype: torch.dtype
) -> None:
    u = torch.tensor([0.0, 0.5, 1 - torch.finfo(dtype).eps / 2], dtype=dtype)
    t = distribution(u)
    assert t.dtype == dtype and t.shape == (3,)
    assert (t.diff() > 0).all()
    assert t[0] >= 0 and t[-1] <= torch.tensor(T_MAX, dtype=dtype)
    if isinstance(distribution, LogNormal):
        assert t[0] > 0, "a weight of 1/sigma would be infinite"


def test_uniform_is_linear() -> None:
    u = torch.tensor([0.0, 0.25, 0.5], dtype=torch.float64)
    torch.testing.assert_close(Uniform(0.4, 1.2)(u), torch.tensor([0.4, 0.6, 0.8], dtype=torch.float64))


@pytest.mark.parametrize(
    "options",
    [{"P_std": 0.0}, {"P_std": -1.0}, {"P_mean": math.nan}, {"sigma_data": 0.0}, {"P_std": math.inf}],
)
def test_a_field_out_of_range_is_named(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(options))):
        LogNormal(**options)


@pytest.mark.parametrize("options", [{"t_min": -0.1}, {"t_max": 2.0}, {"t_min": 1.0, "t_max": 1.0}])
def test_an_empty_or_foreign_range_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="t_min < t_max"):
        Uniform(**options)
