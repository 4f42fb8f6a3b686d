"""Distributions of the training times t, each a pure function of uniform numbers that are passed in.

So the time of an image is the same on one process and on eight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.core.flow import T_MAX, t_from_sigma
from trigflow.system.errors import UserError


@dataclass(frozen=True)
class LogNormal:
    """log(sigma_data tan t) ~ N(P_mean, P_std^2)   (sCM, Algorithm 1; EDM, table 1).

    Args:
        P_mean: mean of log sigma. Small values give times near the data, where a consistency model gets its signal.
        P_std: standard deviation of log sigma, > 0.
        sigma_data: standard deviation of the data, > 0.

    Raises:
        UserError: a field out of its range.
    """

    P_mean: float = -1.0
    P_std: float = 1.4
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not math.isfinite(self.P_mean):
            raise UserError(f"P_mean is {self.P_mean}: give a finite number")
        for name in ("P_std", "sigma_data"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"{name} is {value}: give a number above 0")

    def __call__(self, u: Tensor) -> Tensor:
        """Times in (0, pi/2) from uniforms in [0, 1), same shape and dtype.

        tau = P_mean + P_std Phi^-1(u),   t = arctan(e^tau / sigma_data)
        """
        # u = 0 would give t = 0: it moves by half a step of the grid on which random numbers lie.
        half_step = torch.finfo(u.dtype).eps / 4
        tau = self.P_mean + self.P_std * torch.special.ndtri(_wide(u).clamp(half_step, 1 - half_step))
        return t_from_sigma(torch.exp(tau), self.sigma_data).to(u.dtype)


@dataclass(frozen=True)
class Uniform:
    """t uniform in [t_min, t_max], with 0 <= t_min < t_max <= pi/2.

    Raises:
        UserError: the range is empty or leaves [0, pi/2].
    """

    t_min: float = 0.0
    t_max: float = T_MAX

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < self.t_max <= T_MAX:
            raise UserError(f"t_min {self.t_min}, t_max {self.t_max}: they need 0 <= t_min < t_max <= pi/2")

    def __call__(self, u: Tensor) -> Tensor:
        """Times from uniforms in [0, 1), same shape and dtype."""
        return (self.t_min + (self.t_max - self.t_min) * _wide(u)).to(u.dtype)


# By the name in an objective's `time_distribution`, from its P_mean, P_std and the data's sigma_data.
TIME_DISTRIBUTIONS: dict[str, Callable[[float, float, float], Callable[[Tensor], Tensor]]] = {
    "lognormal": LogNormal,
    "uniform": lambda P_mean, P_std, sigma_data: Uniform(),
}


def _wide(u: Tensor) -> Tensor:
    """u in float64, where the device has it."""
    return u if u.device.type == "mps" else u.double()
