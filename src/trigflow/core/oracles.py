"""Data whose exact velocity and flow map are known: ground truth for a network, and a teacher without error.

Each oracle has the methods of a network, `velocity(x_t, t, **cond)` and `denoised(x_t, t, **cond)`, so that it can
be a frozen teacher; conditions are ignored. It computes in float64 (float32 on a device without) and
returns the dtype of x_t. sigma_data is the std of TrigFlow's noise; the formulas hold for data of any std
(`data_std`), but a network needs the two to be equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from trigflow.core import flow
from trigflow.core.randomness import SampleRandom
from trigflow.system.errors import UserError


class Oracle(Protocol):
    """The methods that all oracles have."""

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """dx_t/dt of the PF-ODE; x_t (B, ...), t (B,)."""

    def denoised(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """E[x_0 | x_t], shape of x_t."""

    def flow_map(self, x_t: Tensor, t: Tensor, steps: int = 128) -> Tensor:
        """The end x_0 of the path through x_t, shape of x_t: what a consistency model must learn."""

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """n samples of the data, (n, ...); sample k depends on (seed, k) only."""


class _ExactModel(nn.Module):
    """A module without classes that follows its data to a device, but not to a smaller dtype."""

    num_classes = 0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        device = fn(torch.empty(0)).device
        # torch leaves the method untyped
        module: Self = super()._apply(lambda x: x.to(device, _wide_dtype(device)), recurse)  # type: ignore[no-untyped-call]
        return module


class Gaussian(_ExactModel):
    """Data x_0 ~ N(mean, std^2), the std one number or one for each coordinate; everything in closed form.

        variance(t) = cos(t)^2 std^2 + sin(t)^2 sigma_data^2
        velocity = cos(t) sin(t) (sigma_data^2 - std^2)/variance (x_t - cos(t) mean) - sin(t) mean
        x_0 = mean + std/sqrt(variance) (x_t - cos(t) mean)

    Args:
        mean: of the shape of one sample, e.g. (D,) or (C, H, W).
        std: broadcastable to mean, > 0.
        sigma_data: std of TrigFlow's noise, > 0.

    Raises:
        UserError: a std or sigma_data that is not positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor | float, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = _positive("sigma_data", sigma_data)
        self.register_buffer("mean", mean.double())
        self.register_buffer(
            "std", torch.as_tensor(std, dtype=torch.float64).broadcast_to(mean.shape).clone()
        )
        if not (self.std > 0).all():
            raise UserError("a Gaussian's std must be above 0 everywhere; for points use FiniteData")

    @property
    def data_std(self) -> float:
        """Root mean square over the coordinates of the data's std."""
        return float(self.std.square().mean().sqrt())

    def _centred(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """cos t, sin t, x_t - cos(t) mean, variance(t); for wide x."""
        cos, sin = torch.cos(t), torch.sin(t)
        variance = (cos * self.std).square() + (sin * self.sigma_data) ** 2
        return cos, sin, x - cos * self.mean, variance

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle."""
        x, wide_t = _wide(x_t, t)
        cos, sin, centred, variance = self._centred(x, wide_t)
        slope = cos * sin * (self.sigma_data**2 - self.std.square()) / variance
        return (slope * centred - sin * self.mean).to(x_t.dtype)

    def denoised(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle."""
        x, wide_t = _wide(x_t, t)
        cos, _, centred, variance = self._centred(x, wide_t)
        return (self.mean + cos * self.std.square() / variance * centred).to(x_t.dtype)

    def flow_map(self, x_t: Tensor, t: Tensor, steps: int = 0) -> Tensor:
        """See Oracle; exact for any `steps`."""
        x, wide_t = _wide(x_t, t)
        _, _, centred, variance = self._centred(x, wide_t)
        return (self.mean + self.std / variance.sqrt() * centred).to(x_t.dtype)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """See Oracle; float32."""
        normal = _random(n, seed, self.mean.device).normal("x_0", tuple(self.mean.shape), self.mean.dtype)
        return (self.mean + self.std * normal).float()


class GaussianMixture(_ExactModel):
    """Data from K Gaussians in D dimensions, of weights w_k, means m_k and stds s_k.

        variance_k(t) = cos(t)^2 s_k^2 + sin(t)^2 sigma_data^2
        p(k | x_t) = softmax_k(log w_k + log N(x_t; cos(t) m_k, variance_k))
        velocity = sum_k p(k | x_t) velocity_k,   denoised = sum_k p(k | x_t) denoised_k         (as in Gaussian)

    Memory: tensors of shape (B, K, D).

    Args:
        weights: (K,), positive; they are normalised.
        means: (K, D).
        stds: (K,), or (K, D) with one for each coordinate; > 0.
        sigma_data: std of TrigFlow's noise, > 0.

    Raises:
        UserError: shapes that do not fit, or a number that is not positive.
    """

    log_weights: Tensor
    means: Tensor
    stds: Tensor

    def __init__(self, weights: Tensor, means: Tensor, stds: Tensor, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = _positive("sigma_data", sigma_data)
        if (
            means.ndim != 2
            or weights.shape != means.shape[:1]
            or stds.shape not in (weights.shape, means.shape)
        ):
            shapes = f"weights {tuple(weights.shape)}, means {tuple(means.shape)}, stds {tuple(stds.shape)}"
            raise UserError(
                f"a mixture needs weights (K,), means (K, D), stds (K,) or (K, D), and not {shapes}"
            )
        if not ((weights > 0).all() and (stds > 0).all()):
            raise UserError("a mixture's weights and stds must be above 0; for points use FiniteData")
        weights, stds = weights.double(), stds.double()
        self.register_buffer("log_weights", torch.log(weights / weights.sum()))
        self.register_buffer("means", means.double())
        self.register_buffer("stds", (stds[:, None] if stds.ndim == 1 else stds).expand_as(means).clone())

    @property
    def data_std(self) -> float:
        """Root mean square over the coordinates of the data's std."""
        weights = self.log_weights.exp()[:, None]
        mean = (weights * self.means).sum(0)
        variance = (weights * (self.stds.square() + (self.means - mean).square())).sum(0)
        return float(variance.mean().sqrt())

    def _components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x_t - cos(t) m_k (B, K, D), variance_k (B, K, D), p(k | x_t) (B, K, 1), t (B, 1, 1)."""
        t = t.reshape(-1, 1, 1)
        centred = x[:, None] - torch.cos(t) * self.means
        variance = (torch.cos(t) * self.stds).square() + (torch.sin(t) * self.sigma_data) ** 2
        log_density = -(centred.square() / variance + variance.log()).sum(2) / 2
        return centred, variance, torch.softmax(self.log_weights + log_density, dim=1)[..., None], t

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle; x_t (B, D)."""
        centred, variance, posterior, wide_t = self._components(*_wide(x_t, t))
        cos, sin = torch.cos(wide_t), torch.sin(wide_t)
        slope = cos * sin * (self.sigma_data**2 - self.stds.square()) / variance
        return (posterior * (slope * centred - sin * self.means)).sum(1).to(x_t.dtype)

    def denoised(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle; x_t (B, D)."""
        centred, variance, posterior, wide_t = self._components(*_wide(x_t, t))
        shrink = torch.cos(wide_t) * self.stds.square() / variance
        return (posterior * (self.means + shrink * centred)).sum(1).to(x_t.dtype)

    def flow_map(self, x_t: Tensor, t: Tensor, steps: int = 128) -> Tensor:
        """See Oracle; `solve_flow` down to t = 0. On `mixture2d` 128 steps err by less than 1e-6."""
        scale = float(self.stds.min()) / self.sigma_data
        return solve_flow(self.velocity, x_t, t, t_end=0.0, scale=scale, steps=steps)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """See Oracle; (n, D) float32."""
        random = _random(n, seed, self.means.device)
        bounds = self.log_weights.exp().cumsum(0)[:-1]
        k = torch.searchsorted(bounds, random.uniform("component", (), bounds.dtype), right=True)
        normal = random.normal("x_0", tuple(self.means.shape[1:]), self.means.dtype)
        return (self.means[k] + self.stds[k] * normal).float()


class FiniteData(_ExactModel):
    """Data that is one of N points, all equally likely: what a network of unlimited capacity would learn.

        p(n | x_t) = softmax_n(-|x_t - cos(t) x_n|^2 / (2 sin(t)^2 sigma_data^2)),   denoised = sum_n p(n | x_t) x_n

    Its velocity (cos(t) x_t - denoised)/sin(t) is finite at t = 0 only where x_t is one of the points; elsewhere it
    grows as 1/t, and t is clamped to at least 1e-6.

    Args:
        points: (N, ...).
        sigma_data: std of TrigFlow's noise, > 0.

    Raises:
        UserError: no points, or sigma_data not positive.
    """

    points: Tensor

    def __init__(self, points: Tensor, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.sigma_data = _positive("sigma_data", sigma_data)
        if points.ndim < 2 or points.shape[0] == 0:
            raise UserError(f"points has the shape {tuple(points.shape)}: give (N, ...) with N >= 1")
        self.register_buffer("points", points.double())

    @property
    def data_std(self) -> float:
        """Root mean square over the coordinates of the data's std."""
        return float((self.points - self.points.mean(0)).square().mean().sqrt())

    def _posterior_mean(self, x: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t] for x (B, D), t (B,): a softmax over all points, accumulated chunk by chunk."""
        cos, twice_variance = torch.cos(t)[:, None], 2 * (torch.sin(t)[:, None] * self.sigma_data) ** 2
        peak = x.new_full((len(x), 1), -math.inf)
        total, mean = torch.zeros_like(peak), torch.zeros_like(x)
        for points in torch.split(self.points.flatten(1), _CHUNK):
            logits = (2 * cos * x @ points.mT - cos.square() * points.square().sum(1)) / twice_variance
            higher = torch.maximum(peak, logits.amax(1, keepdim=True))
            weights, rescale = torch.exp(logits - higher), torch.exp(peak - higher)
            total = total * rescale + weights.sum(1, keepdim=True)
            mean, peak = mean * rescale + weights @ points, higher
        return mean / total

    def denoised(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle."""
        x, _ = _wide(x_t, t)
        clock = t.to(x.dtype).clamp(min=_T_FLOOR).expand(len(x))
        return self._posterior_mean(x.flatten(1), clock).reshape(x.shape).to(x_t.dtype)

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        """See Oracle."""
        x, _ = _wide(x_t, t)
        clock = t.to(x.dtype).clamp(min=_T_FLOOR)
        return flow.velocity_from_denoised(x, self.denoised(x, clock), clock).to(x_t.dtype)

    def flow_map(self, x_t: Tensor, t: Tensor, steps: int = 128) -> Tensor:
        """See Oracle; `solve_flow` down to t = 1e-4, where the rest of the path is a straight line to one point."""
        x = solve_flow(self.velocity, x_t.to(self.points.dtype), t, t_end=_T_END, scale=_T_END, steps=steps)
        return self.denoised(x, t.to(x.dtype).clamp(max=_T_END)).to(x_t.dtype)

    def sample(self, n: int, seed: int = 0) -> Tensor:
        """See Oracle; float32, drawn with replacement."""
        uniform = _random(n, seed, self.points.device).uniform("point", (), self.points.dtype)
        return self.points[(uniform * len(self.points)).long()].float()


def solve_flow(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x_t: Tensor,
    t: Tensor,
    *,
    t_end: float = 0.0,
    scale: float = 0.1,
    steps: int = 128,
) -> Tensor:
    """Solves the PF-ODE from (x_t, t) to t_end by the classical fourth-order Runge-Kutta method.

    The steps are equal in u = log(1 + t/scale): proportional to t far above `scale`, and uniform in t far below it.
    Doubling the steps divides the error by 16.

    Args:
        velocity: velocity(x, t) -> dx/dt; called 4 * steps times.
        x_t: (B, ...).
        t: (B,), the start time of each sample. Samples already below t_end are unchanged.
        t_end: where to stop.
        scale: the time at which the finest structure of the data appears, > 0.
        steps: >= 1.

    Returns:
        x at t_end, (B, ...) in the dtype of x_t; computed in float64 where the device has it.

    Raises:
        UserError: steps < 1.
    """
    if steps < 1:
        raise UserError(f"steps is {steps}: give 1 or more")
    x, _ = _wide(x_t, t)
    start = torch.log1p(t.to(x.dtype) / scale)
    length = (math.log1p(t_end / scale) - start).clamp(max=0) / steps
    h = flow.expand(length, x)

    def slope(x: Tensor, u: Tensor) -> Tensor:
        t = scale * torch.expm1(u).clamp(min=0)
        return velocity(x, t) * flow.expand(t + scale, x)

    for step in range(steps):
        u = start + step * length
        k_1 = slope(x, u)
        k_2 = slope(x + h / 2 * k_1, u + length / 2)
        k_3 = slope(x + h / 2 * k_2, u + length / 2)
        k_4 = slope(x + h * k_3, u + length)
        x = x + h / 6 * (k_1 + 2 * k_2 + 2 * k_3 + k_4)
    return x.to(x_t.dtype)


def mixture2d(sigma_data: float = 0.5) -> GaussianMixture:
    """Eight Gaussians of std 0.1 on the unit circle, all scaled so that each coordinate has std sigma_data."""
    angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = torch.stack([angle.cos(), angle.sin()], dim=1)
    scale = sigma_data / math.sqrt(0.5 + 0.1**2)  # a coordinate on the circle has variance 1/2
    return GaussianMixture(torch.ones(8), scale * means, means.new_full((8,), 0.1 * scale), sigma_data)


_T_FLOOR = 1e-6
_T_END = 1e-4
_CHUNK = 4096  # points that are compared at once; memory is B x _CHUNK numbers


def _wide_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def _wide(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """x_t and t (with trailing dimensions) in the dtype of the oracle's arithmetic."""
    dtype = _wide_dtype(x_t.device)
    return x_t.to(dtype), flow.expand(t, x_t).to(dtype)


def _random(n: int, seed: int, device: torch.device) -> SampleRandom:
    return SampleRandom(seed, torch.arange(n, device=device))


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"{name} is {value}: give a number above 0")
    return value
