"""Classifier-free guidance and autoguidance of a velocity; a scale of 1 means no guidance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any

import torch
from pydantic import BeforeValidator
from torch import Tensor

from trigflow.core.flow import expand
from trigflow.system.errors import UserError
from trigflow.system.tensors import is_tensor

# velocity(x_t, t, **cond) -> dx_t/dt, of the shape of x_t.
ConditionalVelocity = Callable[..., Tensor]

_HIGHEST = 1000  # far beyond any scale in use


def guided(
    velocity: ConditionalVelocity, guidance_scale: float | Tensor, null_label: int
) -> ConditionalVelocity:
    """Classifier-free guidance (Ho and Salimans, 2021): v = v_null + guidance_scale (v_cond - v_null), two evaluations.

    The network is called twice on the same batch, so that a counter around it counts two evaluations and the
    memory is that of one.

    Args:
        velocity: velocity(x_t, t, labels=..., **cond).
        guidance_scale: a number, or a scale for each sample (B,). The number 1 means no guidance: `velocity` itself is
            returned, with one evaluation.
        null_label: the label that stands for "no class": the network's number of classes.

    Returns:
        guided_velocity(x_t, t, labels, **cond).

    Raises:
        UserError: the scale is not finite; or, unless it is 1, the network has no classes (null_label 0).
    """
    if _is_none(guidance_scale):
        return velocity
    if null_label < 1:
        raise UserError(
            f"{_in_words(guidance_scale)} needs a network with class labels, and this one has none: use 1"
        )

    def guided_velocity(x_t: Tensor, t: Tensor, labels: Tensor | None = None, **cond: Tensor) -> Tensor:
        if labels is None:
            raise UserError(f"{_in_words(guidance_scale)} needs labels: give them, or use 1 for no guidance")
        v_cond = velocity(x_t, t, labels=labels, **cond)
        v_null = velocity(x_t, t, labels=torch.full_like(labels, null_label), **cond)
        return _extrapolated(x_t, v_null, v_cond, guidance_scale)

    return guided_velocity


def autoguided(
    velocity: ConditionalVelocity, guide: ConditionalVelocity, guidance_scale: float | Tensor
) -> ConditionalVelocity:
    """Autoguidance (arXiv 2406.02507, equation 2): v = v_guide + guidance_scale (v - v_guide), one evaluation of each.

    The guide is a weaker version of the model (smaller, or trained for less), under the same conditions: where both
    err, they err alike, and the difference points away from the error.

    Args:
        velocity: velocity(x_t, t, **cond) of the model.
        guide: velocity of the weaker model.
        guidance_scale: a number, or a scale for each sample (B,). The number 1 means no guidance: `velocity` itself is
            returned.

    Returns:
        guided_velocity(x_t, t, **cond).

    Raises:
        UserError: the scale is not finite.
    """
    if _is_none(guidance_scale):
        return velocity

    def guided_velocity(x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return _extrapolated(x_t, guide(x_t, t, **cond), velocity(x_t, t, **cond), guidance_scale)

    return guided_velocity


def _is_none(guidance_scale: float | Tensor) -> bool:
    """Whether it is the number 1; a tensor is not read, which would wait for the device."""
    if is_tensor(guidance_scale):
        return False
    if not math.isfinite(guidance_scale):
        raise UserError(f"guidance_scale is {guidance_scale}: give a finite number, 1 for no guidance")
    return guidance_scale == 1


def _in_words(guidance_scale: float | Tensor) -> str:
    given = "of each sample" if is_tensor(guidance_scale) else f"{guidance_scale}"
    return f"guidance_scale {given}"


def _extrapolated(x_t: Tensor, weak: Tensor, strong: Tensor, guidance_scale: float | Tensor) -> Tensor:
    """weak + scale (strong - weak), (B, ...), in float32 at least; of the type of x_t in the end."""
    scale = expand(guidance_scale, x_t).to(torch.promote_types(x_t.dtype, torch.float32))
    return (weak + scale * (strong - weak)).to(x_t.dtype)


# In a recipe: one scale, or the range of a student that takes the scale as an input.


def scale_or_range(value: Any) -> float | tuple[float, float]:
    """A scale, or the range (low, high) of one, from plain data.

    Raises:
        ValueError: it is neither.
    """
    if _is_scale(value):
        return float(value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_scale(end) for end in value):
        low, high = map(float, value)
        if low < high:
            return low, high
    raise ValueError(f"a number from 0 to {_HIGHEST}, or a range [low, high] of two with low < high")


def _is_scale(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _HIGHEST


GuidanceScale = Annotated[float | tuple[float, float], BeforeValidator(scale_or_range)]


def highest_scale(guidance_scale: float | tuple[float, float]) -> float:
    """The scale itself, or the upper end of a range; guidance costs nothing where it is 1."""
    return guidance_scale[1] if isinstance(guidance_scale, tuple) else guidance_scale


def scale_in_words(guidance_scale: float | tuple[float, float]) -> str:
    """The scale or range as a recipe writes it: 1.5, or [1, 2]."""
    if isinstance(guidance_scale, tuple):
        return f"[{', '.join(f'{end:g}' for end in guidance_scale)}]"
    return f"{guidance_scale:g}"


def scales_in(low: float, high: float, u: Tensor) -> Tensor:
    """low + u (high - low): uniform in the range for u (B,) uniform in [0, 1)."""
    return low + (high - low) * u
