"""Classifier-free guidance (Ho and Salimans, 2021) of a velocity; a scale of 1 means none."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trigflow.errors import UserError
from trigflow.flow import expand

# velocity(x_t, t, **cond) -> dx_t/dt, of the shape of x_t.
ConditionalVelocity = Callable[..., Tensor]


def guided(
    velocity: ConditionalVelocity, guidance_scale: float | Tensor, null_label: int
) -> ConditionalVelocity:
    """v = v_null + guidance_scale (v_cond - v_null), at two evaluations of the network.

    The evaluations are two calls on the same batch, so that a counter around the network counts two and the
    memory is that of one.

    Args:
        velocity: velocity(x_t, t, labels=..., **cond).
        guidance_scale: a number, or a scale for each sample (B,). The number 1 means none: `velocity` itself is
            returned, one evaluation.
        null_label: the label that stands for "no class": the network's number of classes.

    Returns:
        guided_velocity(x_t, t, labels, **cond).

    Raises:
        UserError: the scale is not finite; or, unless it is 1, the network knows no classes (null_label 0).
    """
    if not isinstance(guidance_scale, Tensor):
        if not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale is {guidance_scale}: give a finite number, 1 for no guidance")
        if guidance_scale == 1:
            return velocity
    if null_label < 1:
        raise UserError(
            f"guidance_scale {guidance_scale} needs a network with class labels, and this one has none: use 1"
        )

    def guided_velocity(x_t: Tensor, t: Tensor, labels: Tensor | None = None, **cond: Tensor) -> Tensor:
        if labels is None:
            raise UserError(
                f"guidance_scale {guidance_scale} needs labels: give them, or use 1 for no guidance"
            )
        v_cond = velocity(x_t, t, labels=labels, **cond)
        v_null = velocity(x_t, t, labels=torch.full_like(labels, null_label), **cond)
        scale = expand(guidance_scale, x_t).to(torch.promote_types(x_t.dtype, torch.float32))
        return (v_null + scale * (v_cond - v_null)).to(x_t.dtype)

    return guided_velocity
