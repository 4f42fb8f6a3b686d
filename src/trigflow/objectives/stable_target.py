"""Velocities from data with lower variance: the posterior mean over the batch instead of the single pair (x_0, z).

After "Stable target field for reduced variance score estimation in diffusion models" (arXiv 2302.00670), which "Stable
consistency tuning" (arXiv 2410.18958) applies to consistency training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trigflow.core import flow

# Below this sin t the pair itself has all the weight, and 1/sin^2 stays in float32's range.
_SMALLEST_SIN = 1e-6


def stable_velocity(
    x_0: Tensor, z: Tensor, t: Tensor, sigma_data: float, cond: Mapping[str, Tensor]
) -> Tensor:
    """E[v_t | x_t] for data that is the batch itself.

        w_ij = softmax_j( -|x_t,i - cos(t_i) x_0,j|^2 / (2 sin(t_i)^2 sigma_data^2) )
        v_i  = sum_j w_ij (cos(t_i) x_t,i - x_0,j) / sin(t_i)
             = cos(t_i) z_i - sin(t_i) x_0,i + sum_j w_ij (x_0,i - x_0,j) / sin(t_i)

    Only samples with equal conditions are averaged, since the posterior is p(x_0 | x_t, cond). The batch consists of
    independent samples, any of which could have given x_t, so this is the conditional expectation of the velocity of
    the pair given the batch: the same mean at every x_t, and a smaller variance.

    Args:
        x_0: clean data, (B, ...).
        z: noise with standard deviation sigma_data, (B, ...).
        t: times in [0, pi/2], (B,).
        sigma_data: standard deviation of the noise.
        cond: conditions, each (B, ...).

    Returns:
        Velocities, (B, ...).
    """
    data, noise = x_0.flatten(1), z.flatten(1)
    cos, sin = t.cos()[:, None], t.sin()[:, None].clamp_min(_SMALLEST_SIN)
    # Relative to the pair's own term, so that nothing cancels at small times:
    # |x_t,i - cos x_0,j|^2 - |sin z_i|^2 = cos^2 |x_0,i - x_0,j|^2 + 2 cos sin z_i . (x_0,i - x_0,j)
    distances = torch.cdist(data, data, compute_mode="donot_use_mm_for_euclid_dist").square()
    products = (noise * data).sum(1, keepdim=True) - noise @ data.T
    cot = cos / sin
    exponents = (cot**2 * distances + 2 * cot * products) / (-2 * sigma_data**2)
    weights = exponents.masked_fill(~_same_conditions(cond, len(x_0), t.device), -torch.inf).softmax(1)
    others = weights * (1 - torch.eye(len(x_0), dtype=weights.dtype, device=weights.device))
    shift = (others.sum(1, keepdim=True) * data - others @ data) / sin
    return flow.velocity_target(x_0, z, t) + shift.reshape(x_0.shape)


def _same_conditions(cond: Mapping[str, Tensor], size: int, device: torch.device) -> Tensor:
    """Which pairs of samples have all conditions in common, (B, B)."""
    same = torch.ones(size, size, dtype=torch.bool, device=device)
    for values in cond.values():
        rows = values.reshape(size, -1)
        same &= (rows[:, None] == rows[None]).all(-1)
    return same
