"""TrigFlow: the path from data to noise, and its two ends as functions of the velocity.

    x_t = cos(t) x_0 + sin(t) z,   z ~ N(0, sigma_data^2 I),   t in [0, pi/2]         (sCM, section 4.1)

t = 0 is data and t = pi/2 is noise. A prediction of dx/dt determines both ends, since (x_t, dx/dt) is (x_0, z)
rotated by the angle t. Coefficients are computed in at least float32; a result has the dtype of its first argument.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

from trigflow.system.errors import UserError
from trigflow.system.tensors import is_tensor

Number = TypeVar("Number", float, Tensor)

T_MAX = math.pi / 2
# Where sampling starts in all of the paper's experiments: t_max = arctan(80 / sigma_data).
SIGMA_MAX = 80.0
# Where the second step of two-step sampling starts (section 4.4).
T_MID = 1.1


def expand(t: float | Tensor, x: Tensor) -> Tensor:
    """t with trailing dimensions of size one, ready to be multiplied with x.

    Args:
        t: a number, or a tensor () or (B,) in float32 or float64.
        x: (B, ...).

    Returns:
        A float64 scalar for a number (0-dimensional, so that it does not promote x), else (B, 1, ...).

    Raises:
        UserError: t is neither float32 nor float64. In bfloat16 10,000 different times become 769.
    """
    if not is_tensor(t):
        return torch.tensor(t, dtype=torch.float64)
    if t.dtype not in (torch.float32, torch.float64):
        raise UserError(f"the time t is {t.dtype}: make it torch.float32 or torch.float64")
    return t.reshape(-1, *[1] * (x.ndim - 1)) if t.ndim else t


def _cos_sin(t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """cos t and sin t, computed in the wider of t and x, then in at least float32 as x."""
    t = expand(t, x)
    dtype = torch.promote_types(x.dtype, torch.float32)
    t = t.to(torch.promote_types(t.dtype, dtype))
    return torch.cos(t).to(dtype), torch.sin(t).to(dtype)


def interpolate(x_0: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
    """x_t = cos(t) x_0 + sin(t) z; x_0 and z (B, ...), both of std sigma_data."""
    cos, sin = _cos_sin(t, x_0)
    return (cos * x_0 + sin * z).to(x_0.dtype)


def velocity_target(x_0: Tensor, z: Tensor, t: float | Tensor) -> Tensor:
    """dx_t/dt = cos(t) z - sin(t) x_0, the target of diffusion training."""
    cos, sin = _cos_sin(t, x_0)
    return (cos * z - sin * x_0).to(x_0.dtype)


def denoised(x_t: Tensor, velocity: Tensor, t: float | Tensor) -> Tensor:
    """x_0 = cos(t) x_t - sin(t) velocity: E[x_0 | x_t], or for a consistency model the end of the path."""
    cos, sin = _cos_sin(t, x_t)
    return (cos * x_t - sin * velocity).to(x_t.dtype)


def noise(x_t: Tensor, velocity: Tensor, t: float | Tensor) -> Tensor:
    """z = sin(t) x_t + cos(t) velocity, of std sigma_data."""
    cos, sin = _cos_sin(t, x_t)
    return (sin * x_t + cos * velocity).to(x_t.dtype)


def velocity_from_denoised(x_t: Tensor, D: Tensor, t: float | Tensor) -> Tensor:
    """velocity = (cos(t) x_t - D) / sin(t), the inverse of `denoised`.

    At t = 0 the denoiser does not determine the velocity: D = x_t there, and the result is 0. sin(t) is clamped from
    below (by the machine epsilon of the dtype), so that rounding errors stay finite.
    """
    cos, sin = _cos_sin(t, x_t)
    return ((cos * x_t - D) / sin.clamp(min=torch.finfo(sin.dtype).eps)).to(x_t.dtype)


def ddim_step(x_t: Tensor, velocity: Tensor, t: float | Tensor, s: float | Tensor) -> Tensor:
    """A step from t to s with x_0 and z fixed: x_s = cos(t - s) x_t - sin(t - s) velocity (sCM, section 4.1)."""
    cos, sin = _cos_sin(expand(t, x_t) - expand(s, x_t), x_t)
    return (cos * x_t - sin * velocity).to(x_t.dtype)


def sigma_from_t(t: Number, sigma_data: float) -> Number:
    """EDM's noise level: sigma = sigma_data tan(t); finite and positive even where rounding puts t past pi/2."""
    if isinstance(t, int | float):  # a Dual is no Tensor, but computes as one
        return sigma_data * math.tan(t)
    return sigma_data * torch.sin(t) / torch.cos(t).clamp(min=torch.finfo(t.dtype).eps / 2)


def t_from_sigma(sigma: Number, sigma_data: float) -> Number:
    """t = arctan(sigma / sigma_data), the inverse of `sigma_from_t`."""
    if isinstance(sigma, int | float):
        return math.atan(sigma / sigma_data)
    return torch.atan(sigma / sigma_data)
