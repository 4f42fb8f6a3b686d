"""Distributions of the training times t, each a pure function of uniform numbers that are passed in.

So the time of an image is the same on one process and on eight.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trigflow.core.flow import T_MAX, t_from_sigma


def lognormal(u: Tensor, P_mean: float, P_std: float, sigma_data: float) -> Tensor:
    """log(sigma_data tan t) ~ N(P_mean, P_std^2)   (sCM, Algorithm 1; EDM, table 1).

        tau = P_mean + P_std Phi^-1(u),   t = arctan(e^tau / sigma_data)

    Args:
        u: uniforms in [0, 1).
        P_mean: mean of log sigma. Small values give times near the data, where a consistency model gets its signal.
        P_std: standard deviation of log sigma, > 0.
        sigma_data: standard deviation of the data, > 0.

    Returns:
        Times in (0, pi/2), of the shape and dtype of u.
    """
    tau = P_mean + P_std * torch.special.ndtri(_inside(u))
    return t_from_sigma(torch.exp(tau), sigma_data).to(u.dtype)


def uniform(u: Tensor, P_mean: float, P_std: float, sigma_data: float) -> Tensor:
    """t uniform in (0, pi/2], of the shape and dtype of u; P_mean, P_std and sigma_data are ignored."""
    return (T_MAX * _inside(u)).to(u.dtype)


# By the name in an objective's `time_distribution`: times > 0 from uniforms, P_mean, P_std and the data's sigma_data.
TIME_DISTRIBUTIONS: dict[str, Callable[[Tensor, float, float, float], Tensor]] = {
    "lognormal": lognormal,
    "uniform": uniform,
}


def _inside(u: Tensor) -> Tensor:
    """u in float64 where the device has it, and inside (0, 1): t = 0 has an infinite weight 1/sigma.

    Zero moves by half a step of the grid on which random numbers lie; all others stay as they are.
    """
    half_step = torch.finfo(u.dtype).eps / 4
    wide = u if u.device.type == "mps" else u.double()
    return wide.clamp(half_step, 1 - half_step)
