"""Time grids: the times at which a sampler evaluates the network, for a number of steps."""

from __future__ import annotations

import math

from trigflow.core import flow
from trigflow.system.errors import UserError
from trigflow.system.numbers import whole_numbers


def consistency_times(
    steps: int, sigma_data: float = 0.5, t_mid: float = flow.T_MID, sigma_max: float = flow.SIGMA_MAX
) -> list[float]:
    """The `steps` times at which consistency sampling evaluates the network, descending.

    One step starts at t_max = arctan(sigma_max/sigma_data); two add t_mid, 1.1 in all the paper's experiments
    (sCM, section 4.4). Further times are evenly spaced between these two, where new noise still changes the content
    of an image.

    Raises:
        UserError: steps < 1, or t_mid outside (0, t_max).
    """
    _check_steps(steps)
    t_max = flow.t_from_sigma(sigma_max, sigma_data)
    if not 0 < t_mid < t_max:
        raise UserError(f"t_mid is {t_mid}: it must lie between 0 and t_max = {t_max:.4f}")
    return [t_max + (t_mid - t_max) * step / max(steps - 1, 1) for step in range(steps)]


def edm_times(
    steps: int,
    sigma_data: float = 0.5,
    sigma_min: float = 0.002,
    sigma_max: float = flow.SIGMA_MAX,
    rho: float = 7.0,
) -> list[float]:
    """The grid of EDM (Karras et al., 2022, equation 5) in t, descending: `steps` noise levels, then 0.0.

    sigma_i = (sigma_max^(1/rho) + i/(steps-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    Raises:
        UserError: steps < 1, or not 0 < sigma_min < sigma_max, or rho <= 0.
    """
    _check_steps(steps)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UserError(f"sigma_min {sigma_min}, sigma_max {sigma_max}: 0 < sigma_min < sigma_max is needed")
    if not rho > 0:
        raise UserError(f"rho is {rho}: give a number above 0")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = [(first + step / max(steps - 1, 1) * (last - first)) ** rho for step in range(steps)]
    return [*(flow.t_from_sigma(sigma, sigma_data) for sigma in sigmas), 0.0]


def flow_map_times(steps: int, sigma_data: float = 0.5, t_mid: float = flow.T_MID) -> list[float]:
    """The times of `consistency_times`, and 0, where the last step of a flow map ends."""
    return [*consistency_times(steps, sigma_data, t_mid), 0.0]


def _check_steps(steps: int) -> None:
    (steps,) = whole_numbers(steps=steps)
    if steps < 1:
        raise UserError(f"steps is {steps}: give 1 or more")
