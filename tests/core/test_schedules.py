"""Schedules and TrigFlow: exact both ways, and the published formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trigflow.core import flow
from trigflow.core.schedules import (
    DDPM,
    EDM,
    PREDICTIONS,
    SCHEDULES,
    AnySchedule,
    Conversion,
    FlowMatching,
    Schedule,
    VPCosine,
    VPLinear,
)
from trigflow.system.errors import UserError

EXACT = {"rtol": 1e-9, "atol": 1e-9}
BARS = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
SCALES = [(0.5, 1.0), (0.5, 2.0), (1.0, 1.0), (0.3, 5.0)]
# The schedule and times inside its range.
RANGES: dict[str, tuple[Schedule, list[float]]] = {
    "edm": (EDM(), [0.002, 0.5, 80.0]),
    "vp_cosine": (VPCosine(), [1e-3, 0.5, 0.999]),
    "vp_cosine_plain": (VPCosine(0.0), [1e-3, 0.5, 0.999]),
    "vp_linear": (VPLinear(), [1e-3, 0.5, 1.0]),
    "ddpm": (DDPM(BARS), [0.0, 0.5, 433.0, 998.25, 999.0]),
    "flow_matching": (FlowMatching(), [1e-3, 0.5, 0.999]),
    "any": (AnySchedule(lambda s: (1 - s) ** 2, lambda s: s**3), [0.1, 0.5, 0.9]),
}


def wide(values: list[float] | float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=RANGES)
def case(request: pytest.FixtureRequest) -> tuple[Schedule, Tensor, Tensor, Tensor]:
    """A schedule, times, and unit-variance data and noise for them."""
    schedule, times = RANGES[request.param]
    data, eps = torch.randn(2, len(times), 3, 2, dtype=torch.float64)
    return schedule, wide(times), data, eps


@pytest.mark.parametrize(("sigma_data", "data_scale"), SCALES)
def test_times_both_ways(
    case: tuple[Schedule, Tensor, Tensor, Tensor], sigma_data: float, data_scale: float
) -> None:
    schedule, s, _, _ = case
    conversion = Conversion(schedule, sigma_data, data_scale)
    t = conversion.t(s)
    torch.testing.assert_close(conversion.time(t), s, **EXACT)
    torch.testing.assert_close(conversion.t(conversion.time(t)), t, **EXACT)
    ratio = schedule.sigma(s) / schedule.alpha(s)
    torch.testing.assert_close(t, torch.atan(ratio / (sigma_data * data_scale)), **EXACT)


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize(("sigma_data", "data_scale"), SCALES)
def test_points_and_predictions_both_ways(
    case: tuple[Schedule, Tensor, Tensor, Tensor], sigma_data: float, data_scale: float, kind: str
) -> None:
    """From x_0 and noise alone: both paths are built by definition, then converted."""
    schedule, s, data, eps = case
    x_0, z = sigma_data * data, sigma_data * eps
    x_0_foreign = data_scale * x_0
    alpha, sigma = flow.expand(schedule.alpha(s), data), flow.expand(schedule.sigma(s), data)
    conversion = Conversion(schedule, sigma_data, data_scale)
    t = conversion.t(s)
    x_foreign, x_t = alpha * x_0_foreign + sigma * eps, flow.interpolate(x_0, z, t)
    torch.testing.assert_close(conversion.point(x_foreign, s), x_t, **EXACT)
    torch.testing.assert_close(conversion.foreign_point(x_t, s), x_foreign, **EXACT)
    std = conversion.data_std
    edm_ratio = sigma / alpha
    c_skip = std**2 / (edm_ratio**2 + std**2)
    c_out = edm_ratio * std / torch.sqrt(edm_ratio**2 + std**2)
    prediction = {
        "eps": eps,
        "x_0": x_0_foreign,
        "v": alpha * eps - sigma * x_0_foreign,
        "flow": eps - x_0_foreign,
        "edm_F": (x_0_foreign - c_skip * x_foreign / alpha) / c_out,
    }[kind]
    v = flow.velocity_target(x_0, z, t)
    torch.testing.assert_close(conversion.velocity(prediction, x_t, s, kind), v, rtol=1e-9, atol=2e-9)
    torch.testing.assert_close(conversion.prediction(v, x_t, s, kind), prediction, **EXACT)


# The published formulas


@settings(deadline=None, max_examples=20)
@given(st.floats(1e-3, 1 - 1e-3))
def test_flow_matching_as_sana_sprint(t_fm: float) -> None:
    """Proposition 3.1 of SANA-Sprint, for data scaled to unit variance, and the wrapper of rCM."""
    sigma_data = 0.5
    x_t, v_fm = torch.randn(2, 1, 4, dtype=torch.float64)
    conversion = Conversion(FlowMatching(), sigma_data, data_scale=1 / sigma_data)
    s = wide([t_fm])
    t = conversion.t(s)
    torch.testing.assert_close(s, t.sin() / (t.sin() + t.cos()), **EXACT)
    norm = math.sqrt(t_fm**2 + (1 - t_fm) ** 2)
    x_fm = x_t / sigma_data * norm
    torch.testing.assert_close(conversion.foreign_point(x_t, s), x_fm, **EXACT)
    F = ((1 - 2 * t_fm) * x_fm + (1 - 2 * t_fm + 2 * t_fm**2) * v_fm) / norm
    v = conversion.velocity(v_fm, x_t, s, "flow")
    torch.testing.assert_close(v, sigma_data * F, **EXACT)
    both = t.cos() + t.sin()
    D = (x_t / sigma_data - t.sin() * v_fm) / both  # c_skip = 1/(cos + sin), c_out = -sin/(cos + sin)
    torch.testing.assert_close(flow.denoised(x_t, v, t) / sigma_data, D, **EXACT)


@settings(deadline=None, max_examples=20)
@given(st.floats(2e-3, 80.0))
def test_an_edm_network_is_a_trigflow_network_of_the_other_sign(sigma: float) -> None:
    sigma_data = 0.5
    x_sigma, F_edm = torch.randn(2, 1, 4, dtype=torch.float64)
    conversion, s = Conversion(EDM(), sigma_data), wide([sigma])
    x_t = conversion.point(x_sigma, s)
    torch.testing.assert_close(x_t, conversion.t(s).cos() * x_sigma, **EXACT)
    torch.testing.assert_close(x_t / sigma_data, x_sigma / math.sqrt(sigma**2 + sigma_data**2), **EXACT)
    torch.testing.assert_close(conversion.velocity(F_edm, x_t, s, "edm_F"), -sigma_data * F_edm, **EXACT)


def test_variance_preserving_with_unit_variance_is_the_same_point() -> None:
    for schedule in (VPCosine(), VPLinear()):
        conversion, s = Conversion(schedule, sigma_data=1.0), wide([0.1, 0.6, 0.9])
        torch.testing.assert_close(conversion.t(s), torch.acos(schedule.alpha(s)), **EXACT)
        x = torch.randn(3, 2, dtype=torch.float64)
        torch.testing.assert_close(conversion.point(x, s), x, **EXACT)
        prediction = torch.randn_like(x)  # and the VP v-prediction is the velocity
        torch.testing.assert_close(conversion.velocity(prediction, x, s, "v"), prediction, **EXACT)


def test_a_denoiser_as_the_sCM_notes_have_it() -> None:
    """F = (cos t x_t - D) / (sigma_data sin t)."""
    conversion, s = Conversion(EDM(), 0.5), wide([0.1, 1.0, 10.0])
    x_t, D = torch.randn(2, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(
        conversion.velocity(D, x_t, s, "x_0"),
        flow.velocity_from_denoised(x_t, D, conversion.t(s)),
        **EXACT,
    )


def test_schedules_by_their_definitions() -> None:
    s = wide([0.0, 0.2, 0.7])
    bar = torch.cos((s + 0.008) / 1.008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(VPCosine().alpha(s) ** 2, bar, **EXACT)
    torch.testing.assert_close(VPLinear().alpha(s), torch.exp(-(s**2) * 19.9 / 4 - 0.05 * s), **EXACT)
    for schedule in (VPCosine(), VPLinear(), DDPM(BARS)):
        torch.testing.assert_close(
            schedule.alpha(s) ** 2 + schedule.sigma(s) ** 2, torch.ones_like(s), **EXACT
        )
    k = torch.arange(1000)
    torch.testing.assert_close(DDPM(BARS).alpha(k.double()) ** 2, BARS, **EXACT)


def test_ddpm_is_log_linear_between_steps_and_stops_at_its_ends() -> None:
    schedule = DDPM(BARS)
    ratio = schedule.sigma(wide([10.0, 10.5, 11.0])) / schedule.alpha(wide([10.0, 10.5, 11.0]))
    torch.testing.assert_close(ratio[1], (ratio[0] * ratio[2]).sqrt(), **EXACT)
    assert schedule.time_from_ratio(wide([0.0, 1e-9, 1e9])).tolist() == [0.0, 0.0, 999.0]


@pytest.mark.parametrize("kind", PREDICTIONS)
@pytest.mark.parametrize("name", RANGES)
def test_both_ends_are_finite(name: str, kind: str, device: torch.device) -> None:
    """At t = 0 and pi/2 a prediction may say nothing of the velocity, but nothing becomes NaN."""
    conversion = Conversion(RANGES[name][0])
    t = torch.tensor([0.0, 1e-7, flow.T_MAX], device=device)
    x_t = torch.randn(3, 2, device=device)
    s = conversion.time(t)
    prediction = conversion.prediction(x_t, x_t, s, kind)
    assert s.isfinite().all() and conversion.foreign_point(x_t, s).isfinite().all()
    assert prediction.isfinite().all() and conversion.velocity(prediction, x_t, s, kind).isfinite().all()


def test_float32_times_and_half_precision_samples(device: torch.device) -> None:
    conversion = Conversion(VPCosine())
    s = torch.tensor([0.1, 0.9], device=device)
    x = torch.randn(2, 3, device=device)
    assert conversion.t(s).dtype == torch.float32
    torch.testing.assert_close(conversion.time(conversion.t(s)), s)
    assert conversion.point(x.bfloat16(), s).dtype == torch.bfloat16
    torch.testing.assert_close(conversion.foreign_point(conversion.point(x, s), s), x)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'eps'"):
        Conversion(EDM()).velocity(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1), "ep")
    with pytest.raises(UserError, match="sigma_data"):
        Conversion(EDM(), sigma_data=0.0)
    with pytest.raises(UserError, match="data_scale"):
        Conversion(EDM(), data_scale=-1.0)
    with pytest.raises(UserError, match="offset"):
        SCHEDULES["vp_cosine"](offset=-1.0)
    with pytest.raises(UserError, match="beta_min"):
        SCHEDULES["vp_linear"](beta_min=3.0, beta_max=2.0)
    with pytest.raises(UserError, match="s_min"):
        AnySchedule(torch.cos, torch.sin, 1.0, 1.0)


@pytest.mark.parametrize("bars", [[0.5], [0.5, 0.9], [1.0, 0.5], [0.5, 0.0]])
def test_ddpm_tables_out_of_range_are_refused(bars: list[float]) -> None:
    with pytest.raises(UserError, match="alphas_cumprod"):
        SCHEDULES["ddpm"](torch.tensor(bars))
