"""Exact conversion between other noise schedules and TrigFlow: times, noisy samples, and predictions.

Any schedule mixes data and unit noise: x' = alpha(s) x_0' + sigma(s) eps, with its own time s. Dividing
x' by the norm of its coefficients gives TrigFlow's x_t (sCM, appendix B; SANA-Sprint,
proposition 3.1). The prediction target of a network is a linear combination of x_0' and eps too, hence of
x_t and the velocity.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from trigflow.core.flow import expand, sigma_from_t
from trigflow.system.errors import UserError, did_you_mean


class Schedule(Protocol):
    """A path x' = alpha(s) x_0' + sigma(s) eps whose ratio sigma/alpha grows with the time s."""

    def alpha(self, s: Tensor) -> Tensor:
        """Coefficient of the data, shape of s."""

    def sigma(self, s: Tensor) -> Tensor:
        """Coefficient of the unit noise, shape of s."""

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        """The time s at which sigma(s)/alpha(s) = ratio >= 0, shape of ratio."""


@dataclass(frozen=True)
class EDM:
    """Variance exploding, x' = x_0' + s eps; the time is sigma itself (Karras et al., 2022)."""

    def alpha(self, s: Tensor) -> Tensor:
        return torch.ones_like(s)

    def sigma(self, s: Tensor) -> Tensor:
        return s

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        return ratio


@dataclass(frozen=True)
class FlowMatching:
    """Straight lines, x' = (1 - s) x_0' + s eps for s in [0, 1] (Liu et al., 2022; Lipman et al., 2023)."""

    def alpha(self, s: Tensor) -> Tensor:
        return 1 - s

    def sigma(self, s: Tensor) -> Tensor:
        return s

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)


@dataclass(frozen=True)
class VPCosine:
    """Variance preserving, alpha(s) = cos(a(s)) / cos(a(0)), a(s) = pi/2 (s + offset)/(1 + offset), s in [0, 1].

    An offset of 0.008 is that of Nichol and Dhariwal (2021, equation 17), 0 gives the plain cosine.

    Raises:
        UserError: a negative offset.
    """

    offset: float = 0.008

    def __post_init__(self) -> None:
        if not 0 <= self.offset < math.inf:
            raise UserError(f"offset is {self.offset}: give a number of at least 0")

    @property
    def _start(self) -> float:
        return math.pi / 2 * self.offset / (1 + self.offset)

    def _angle(self, s: Tensor) -> Tensor:
        return math.pi / 2 * (s + self.offset) / (1 + self.offset)

    def alpha(self, s: Tensor) -> Tensor:
        return torch.cos(self._angle(s)) / math.cos(self._start)

    def sigma(self, s: Tensor) -> Tensor:
        # 1 - alpha^2 written as a product of sines, which does not cancel near the data.
        angle = self._angle(s)
        product = torch.sin(angle - self._start) * torch.sin(angle + self._start)
        return torch.sqrt(product) / math.cos(self._start)

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        start = torch.full_like(ratio, math.tan(self._start))
        angle = torch.atan(torch.hypot(ratio / math.cos(self._start), start))
        return angle * 2 / math.pi * (1 + self.offset) - self.offset


@dataclass(frozen=True)
class VPLinear:
    """Variance preserving, beta linear in s in [0, 1]; the VP SDE of Song et al. (2021, appendix C).

    -2 log alpha(s) = s beta_min + s^2/2 (beta_max - beta_min)

    Raises:
        UserError: not 0 <= beta_min < beta_max.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.beta_min < self.beta_max < math.inf:
            raise UserError(
                f"beta_min {self.beta_min}, beta_max {self.beta_max}: 0 <= beta_min < beta_max is needed"
            )

    def _integral(self, s: Tensor) -> Tensor:
        return s * (self.beta_min + s / 2 * (self.beta_max - self.beta_min))

    def alpha(self, s: Tensor) -> Tensor:
        return torch.exp(-self._integral(s) / 2)

    def sigma(self, s: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(s)))

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        # sigma^2/alpha^2 = expm1(integral), then a root of the quadratic that does not cancel near the data.
        integral = torch.log1p(ratio.square())
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * integral)
        return 2 * integral / (self.beta_min + root).clamp(min=torch.finfo(ratio.dtype).tiny)


@dataclass(frozen=True, eq=False)
class DDPM:
    """Variance preserving in discrete steps k = 0 .. N-1, alpha(k)^2 = alphas_cumprod[k] (Ho et al., 2020).

    Between steps log(sigma/alpha) is interpolated linearly in k; times are clamped to the first and the last step.

    Args:
        alphas_cumprod: (N,), decreasing, inside (0, 1), N >= 2.

    Raises:
        UserError: any other alphas_cumprod; a last value of 0 (zero terminal SNR) has no finite sigma/alpha.
    """

    alphas_cumprod: Tensor

    def __post_init__(self) -> None:
        bars = self.alphas_cumprod
        if bars.ndim != 1 or len(bars) < 2:
            raise UserError(
                f"alphas_cumprod has the shape {tuple(bars.shape)}: give a vector of two steps or more"
            )
        if not (bars.diff() < 0).all() or not 0 < bars[-1] <= bars[0] < 1:
            raise UserError("alphas_cumprod must decrease and stay strictly between 0 and 1")

    def _table(self, like: Tensor) -> Tensor:
        bars = self.alphas_cumprod.to(like)
        return (torch.log1p(-bars) - torch.log(bars)) / 2

    def _log_ratio(self, s: Tensor) -> Tensor:
        table = self._table(s)
        s = s.clamp(0, len(table) - 1)
        step = s.floor().clamp(max=len(table) - 2).long()
        return torch.lerp(table[step], table[step + 1], s - step)

    def alpha(self, s: Tensor) -> Tensor:
        return torch.sigmoid(-2 * self._log_ratio(s)).sqrt()

    def sigma(self, s: Tensor) -> Tensor:
        return torch.sigmoid(2 * self._log_ratio(s)).sqrt()

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        table = self._table(ratio)
        log_ratio = torch.log(ratio).clamp(table[0], table[-1])
        step = torch.searchsorted(table, log_ratio, right=True).clamp(1, len(table) - 1) - 1
        return step + (log_ratio - table[step]) / (table[step + 1] - table[step])


@dataclass(frozen=True)
class AnySchedule:
    """A schedule given by its two functions; times are found by bisection.

    Args:
        alpha: coefficient of the data as a function of the time, elementwise.
        sigma: coefficient of the noise; sigma/alpha must grow from s_min to s_max.
        s_min, s_max: the range of times, s_min < s_max.

    Raises:
        UserError: an empty range.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    s_min: float = 0.0
    s_max: float = 1.0

    def __post_init__(self) -> None:
        if not self.s_min < self.s_max:
            raise UserError(f"s_min {self.s_min}, s_max {self.s_max}: the range of times is empty")

    def time_from_ratio(self, ratio: Tensor) -> Tensor:
        low, high = torch.full_like(ratio, self.s_min), torch.full_like(ratio, self.s_max)
        for _ in range(64):  # more halvings than float64 has digits
            middle = (low + high) / 2
            below = self.sigma(middle) < ratio * self.alpha(middle)
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return self._moving((low + high) / 2, ratio, (low > self.s_min) & (high < self.s_max))

    def _moving(self, s: Tensor, ratio: Tensor, inside: Tensor) -> Tensor:
        """s with its derivative along the ratio, which the comparisons of a bisection lose; 0 where s is an end.

        sigma(s) = ratio alpha(s)  =>  ds/dratio = alpha / (sigma' - ratio alpha')
        """
        ones, fixed = torch.ones_like(s), ratio.detach()
        slopes: list[Tensor] = [torch.func.jvp(of, (s,), (ones,))[1] for of in (self.alpha, self.sigma)]
        slope = (self.alpha(s) / (slopes[1] - fixed * slopes[0])).where(inside, 0)
        return s + torch.where(inside, ratio - fixed, 0) * slope


def _v_prediction(alpha: Tensor, sigma: Tensor, data_std: float) -> tuple[Tensor, Tensor]:
    """v = alpha eps - sigma x_0' (Salimans and Ho, 2022)."""
    return -sigma, alpha


def _edm_network(alpha: Tensor, sigma: Tensor, data_std: float) -> tuple[Tensor, Tensor]:
    """F = sin(t) x_0' / data_std - cos(t) eps, the raw network in EDM's D = c_skip x' + c_out F (table 1)."""
    norm = torch.hypot(sigma, data_std * alpha)
    return sigma / (data_std * norm), -data_std * alpha / norm


# What a network predicts, as coefficients (of x_0', of eps) from (alpha, sigma, std of x_0').
PREDICTIONS: dict[str, Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]] = {
    "eps": lambda alpha, sigma, data_std: (torch.zeros_like(alpha), torch.ones_like(alpha)),
    "x_0": lambda alpha, sigma, data_std: (torch.ones_like(alpha), torch.zeros_like(alpha)),
    "v": _v_prediction,
    "flow": lambda alpha, sigma, data_std: (-torch.ones_like(alpha), torch.ones_like(alpha)),
    "edm_F": _edm_network,
}


@dataclass(frozen=True)
class Conversion:
    """Conversion between a noise schedule and TrigFlow, in both directions.

        t = arctan(sigma / (data_std alpha)),   data_std = data_scale sigma_data
        x_t = x' / norm,   norm^2 = (data_scale alpha)^2 + (sigma / sigma_data)^2
        prediction = c_skip x_t + c_out velocity

    Args:
        schedule: the other noise schedule.
        sigma_data: std of TrigFlow's x_0, > 0.
        data_scale: the schedule's data is x_0' = data_scale x_0; 1/sigma_data where it has unit variance.

    Raises:
        UserError: sigma_data or data_scale is not positive.
    """

    schedule: Schedule
    sigma_data: float = 0.5
    data_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("sigma_data", "data_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} is {getattr(self, name)}: give a number above 0")

    @property
    def data_std(self) -> float:
        """Std of the schedule's data x_0'."""
        return self.data_scale * self.sigma_data

    def t(self, s: Tensor) -> Tensor:
        """TrigFlow's time (B,) at the schedule's time s (B,)."""
        wide = _wide(s)
        t = torch.atan2(self.schedule.sigma(wide), self.data_std * self.schedule.alpha(wide))
        return t.to(_time_dtype(s))

    def time(self, t: Tensor) -> Tensor:
        """The schedule's time (B,) at TrigFlow's time t (B,)."""
        return self.schedule.time_from_ratio(sigma_from_t(_wide(t), self.data_std)).to(_time_dtype(t))

    def point(self, x: Tensor, s: Tensor) -> Tensor:
        """The schedule's x' (B, ...) at its time s (B,) as TrigFlow's x_t."""
        return _scale(x, 1 / self._norm(_wide(s)))

    def foreign_point(self, x_t: Tensor, s: Tensor) -> Tensor:
        """TrigFlow's x_t (B, ...) as the schedule's x' at its time s (B,)."""
        return _scale(x_t, self._norm(_wide(s)))

    def velocity(self, prediction: Tensor, x_t: Tensor, s: Tensor, kind: str) -> Tensor:
        """TrigFlow's velocity from a network's prediction at foreign_point(x_t, s).

        Args:
            prediction: (B, ...), the network's output.
            x_t: (B, ...), TrigFlow's noisy sample.
            s: (B,), the schedule's time.
            kind: "eps", "x_0", "v" (alpha eps - sigma x_0'), "flow" (eps - x_0') or "edm_F" (EDM's network).

        Raises:
            UserError: kind is unknown.
        """
        c_skip, c_out = self._coefficients(_wide(s), kind)
        # x_0 does not determine the velocity at t = 0, nor eps at pi/2: there 0/0 is kept finite.
        floor = torch.finfo(_time_dtype(x_t)).eps
        c_out = c_out.where(c_out.abs() > floor, floor)
        return _scale(prediction - _scale(x_t, c_skip), 1 / c_out)

    def prediction(self, velocity: Tensor, x_t: Tensor, s: Tensor, kind: str) -> Tensor:
        """The prediction of this kind that corresponds to TrigFlow's velocity: the inverse of `velocity`."""
        c_skip, c_out = self._coefficients(_wide(s), kind)
        return _scale(x_t, c_skip) + _scale(velocity, c_out)

    def _circle(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of x_0 and of z (std sigma_data) in x'."""
        return self.schedule.alpha(s) * self.data_scale, self.schedule.sigma(s) / self.sigma_data

    def _norm(self, s: Tensor) -> Tensor:
        return torch.hypot(*self._circle(s))

    def _coefficients(self, s: Tensor, kind: str) -> tuple[Tensor, Tensor]:
        """c_skip and c_out: the prediction a x_0 + b z with x_0 = cos x_t - sin v and z = sin x_t + cos v."""
        if kind not in PREDICTIONS:
            raise UserError(
                f"no prediction '{kind}'{did_you_mean(kind, PREDICTIONS)}; known: {', '.join(PREDICTIONS)}"
            )
        of_data, of_noise = PREDICTIONS[kind](self.schedule.alpha(s), self.schedule.sigma(s), self.data_std)
        a, b = of_data * self.data_scale, of_noise / self.sigma_data
        cos, sin = (coefficient / self._norm(s) for coefficient in self._circle(s))
        return a * cos + b * sin, b * cos - a * sin


def _wide(t: Tensor) -> Tensor:
    """Times in float64, where the device has it."""
    return t.to(torch.float32) if t.device.type == "mps" else t.double()


def _time_dtype(t: Tensor) -> torch.dtype:
    """At least float32."""
    return torch.promote_types(t.dtype, torch.float32)


def _scale(x: Tensor, factor: Tensor) -> Tensor:
    """x times one number for each sample, in at least float32, as the dtype of x."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return (x * expand(factor, x).to(wide)).to(x.dtype)


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "edm": EDM,
    "vp_cosine": VPCosine,
    "vp_linear": VPLinear,
    "ddpm": DDPM,
    "flow_matching": FlowMatching,
}
