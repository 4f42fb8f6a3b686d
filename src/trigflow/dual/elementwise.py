"""Rules of elementwise functions: activations, powers, comparisons, and functions without a derivative."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual.linear import Work, named, register
from trigflow.dual.value import Dual, Rule, duals_in, fallback, read_number, value_of

aten = torch.ops.aten
_SPACES = (torch, Tensor, F, torch.special)


def elementwise(derivative: Callable[..., Tensor]) -> Rule:
    """The rule of y = f(x, options) whose tangent is derivative(dx, x, y, options).

    The Jacobian of an elementwise function is diagonal, hence symmetric, so the fused kernels of the backward pass
    compute the tangent.
    """

    def rule(func: Any, x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
        if not isinstance(x, Dual) or x.value.is_complex() or duals_in((args, kwargs)):
            return fallback(func, x, *args, **kwargs)  # of a complex number the kernels conjugate
        kwargs.pop("inplace", None)
        value = func(x.value, *args, **kwargs)
        return value, lambda: derivative(x.tangent, x.value, value, *args, **kwargs)

    return rule


def _clamp(dx: Tensor, x: Tensor, y: Tensor, min: Any = None, max: Any = None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool)
    if min is not None:
        inside = inside & (x >= min)
    if max is not None:
        inside = inside & (x <= max)
    return dx * inside


def _gelu(dx: Tensor, x: Tensor, y: Tensor, approximate: str = "none") -> Tensor:
    return aten.gelu_backward(dx, x, approximate=approximate)  # type: ignore[no-any-return]


def _leaky_relu(dx: Tensor, x: Tensor, y: Tensor, negative_slope: float = 0.01, *_: Any) -> Tensor:
    return aten.leaky_relu_backward(dx, x, negative_slope, False)  # type: ignore[no-any-return]


def _softplus(dx: Tensor, x: Tensor, y: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    return aten.softplus_backward(dx, x, beta, threshold)  # type: ignore[no-any-return]


def _elu(dx: Tensor, x: Tensor, y: Tensor, alpha: float = 1.0, *_: Any) -> Tensor:
    return aten.elu_backward(dx, alpha, 1.0, 1.0, False, x)  # type: ignore[no-any-return]


def _hardtanh(
    dx: Tensor, x: Tensor, y: Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: Any
) -> Tensor:
    return aten.hardtanh_backward(dx, x, min_val, max_val)  # type: ignore[no-any-return]


# y = f(x) -> dy as a function of (dx, x, y).
_DERIVATIVES: dict[str, Callable[..., Tensor]] = {
    "exp": lambda dx, x, y: dx * y,
    "exp2": lambda dx, x, y: dx * y * math.log(2),
    "expm1": lambda dx, x, y: dx * (y + 1),
    "log": lambda dx, x, y: dx / x,
    "log2": lambda dx, x, y: dx / (x * math.log(2)),
    "log10": lambda dx, x, y: dx / (x * math.log(10)),
    "log1p": lambda dx, x, y: dx / (x + 1),
    "sqrt": lambda dx, x, y: dx / (2 * y),
    "rsqrt": lambda dx, x, y: dx * (y * -0.5) * (y * y),  # y**3 would leave float16 on both sides
    "square": lambda dx, x, y: dx * x * 2,
    "reciprocal": lambda dx, x, y: dx * y * -y,
    "sin": lambda dx, x, y: dx * x.cos(),
    "cos": lambda dx, x, y: dx * -x.sin(),
    "tan": lambda dx, x, y: dx * (y * y + 1),
    "asin": lambda dx, x, y: dx * torch.rsqrt(1 - x * x),
    "acos": lambda dx, x, y: dx * -torch.rsqrt(1 - x * x),
    "atan": lambda dx, x, y: dx / (x * x + 1),
    "sinh": lambda dx, x, y: dx * x.cosh(),
    "cosh": lambda dx, x, y: dx * x.sinh(),
    "tanh": lambda dx, x, y: aten.tanh_backward(dx, y),
    "sigmoid": lambda dx, x, y: aten.sigmoid_backward(dx, y),
    "expit": lambda dx, x, y: aten.sigmoid_backward(dx, y),
    "erf": lambda dx, x, y: dx * torch.exp(-x * x) * (2 / math.sqrt(math.pi)),
    "sinc": lambda dx, x, y: torch.where(x == 0, 0, dx * (torch.cos(math.pi * x) - y) / x),
    "abs": lambda dx, x, y: dx * x.sgn(),
    "absolute": lambda dx, x, y: dx * x.sgn(),
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": lambda dx, x, y, min: _clamp(dx, x, y, min=min),
    "clamp_max": lambda dx, x, y, max: _clamp(dx, x, y, max=max),
    "nan_to_num": lambda dx, x, y, *_, **__: torch.where(torch.isfinite(x), dx, 0),
    "relu": lambda dx, x, y: aten.threshold_backward(dx, x, 0),
    "relu6": lambda dx, x, y: aten.hardtanh_backward(dx, x, 0.0, 6.0),
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "silu": lambda dx, x, y: aten.silu_backward(dx, x),
    "mish": lambda dx, x, y: aten.mish_backward(dx, x),
    "gelu": _gelu,
    "softplus": _softplus,
    "hardtanh": _hardtanh,
    "hardswish": lambda dx, x, y: aten.hardswish_backward(dx, x),
    "hardsigmoid": lambda dx, x, y: aten.hardsigmoid_backward(dx, x),
    "logsigmoid": lambda dx, x, y: dx * torch.sigmoid(-x),
    "softsign": lambda dx, x, y: dx / (x.abs() + 1).square(),
}
for _name, _derivative in _DERIVATIVES.items():
    register(elementwise(_derivative), named(_name, spaces=_SPACES))


def power(func: Any, x: Any, exponent: Any) -> tuple[Any, Work]:
    """d x^p = p x^(p-1) dx for a number p, d b^x = b^x log b dx for a number b; else torch.func.jvp."""
    if isinstance(x, Dual) and isinstance(exponent, int | float):
        value = x.value**exponent
        if exponent == 0:
            return value, lambda: torch.zeros_like(x.tangent)
        return value, lambda: x.tangent * (exponent * x.value ** (exponent - 1))
    if isinstance(exponent, Dual) and isinstance(x, int | float) and x > 0:
        value = torch.pow(x, exponent.value)
        return value, lambda: exponent.tangent * value * math.log(x)
    return fallback(func, x, exponent)


register(power, [*named("pow"), Tensor.__pow__])


def atan2(func: Any, y: Any, x: Any) -> tuple[Any, Work]:
    """d atan2(y, x) = (x dy - y dx) / (x^2 + y^2)."""
    a, b = value_of(y), value_of(x)

    def tangent() -> Tensor:
        total = y.tangent * b if isinstance(y, Dual) else 0
        return (total - (x.tangent * a if isinstance(x, Dual) else 0)) / (a * a + b * b)  # type: ignore[no-any-return]

    return func(a, b), tangent


register(atan2, named("atan2 arctan2"))


def hypot(func: Any, x: Any, y: Any) -> tuple[Any, Work]:
    """d hypot(x, y) = (x dx + y dy) / hypot(x, y)."""
    value = func(value_of(x), value_of(y))
    moving = [item for item in (x, y) if isinstance(item, Dual)]
    return value, lambda: sum(item.tangent * (item.value / value) for item in moving)


register(hypot, named("hypot"))


def larger(func: Any, x: Any, y: Any) -> tuple[Any, Work]:
    """maximum and minimum of two: the tangent of the selected one, the mean of both where they are equal."""
    value = func(value_of(x), value_of(y))

    def share(item: Any, other: Any) -> Any:
        if not isinstance(item, Dual):
            return 0
        taken = (item.value == value).to(value.dtype)
        return item.tangent * torch.where(item.value == value_of(other), 0.5, taken)

    return value, lambda: share(x, y) + share(y, x)


register(larger, named("maximum minimum"))


def remainder(func: Any, x: Any, y: Any) -> tuple[Any, Work]:
    """x - floor(x / y) y, where the floor has tangent zero."""
    a, b = value_of(x), value_of(y)
    value = func(a, b)

    def tangent() -> Tensor:
        total = torch.zeros_like(value) + (x.tangent if isinstance(x, Dual) else 0)
        return total - y.tangent * torch.floor(a / b) if isinstance(y, Dual) else total

    return value, tangent


register(remainder, named("remainder"))


def lerp(func: Any, x: Any, y: Any, weight: Any) -> tuple[Any, Work]:
    """x + w (y - x): d = (1 - w) dx + w dy + (y - x) dw."""
    a, b, w = value_of(x), value_of(y), value_of(weight)
    value = func(a, b, w)

    def tangent() -> Tensor:
        total = torch.zeros_like(value)
        if isinstance(x, Dual):
            total = total + x.tangent * (1 - w)
        if isinstance(y, Dual):
            total = total + y.tangent * w
        return total + weight.tangent * (b - a) if isinstance(weight, Dual) else total

    return value, tangent


register(lerp, named("lerp"))


# ----------------------------------------------------------------------------------------------------------------------
# Nothing to differentiate: what is asked of shapes and signs, constants shaped like a Dual, and detach.


def constant(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
    return func(*value_of(args), **value_of(kwargs)), None


register(
    constant,
    named(
        "eq ne lt le gt ge greater greater_equal less less_equal not_equal equal allclose isclose isnan isinf "
        "isfinite argmax argmin argsort any all count_nonzero nonzero logical_not logical_and logical_or "
        "bucketize sign sgn floor ceil round trunc heaviside floor_divide signbit zeros_like ones_like "
        "full_like empty_like rand_like randn_like randint_like new_zeros new_ones new_full new_empty "
        "new_tensor detach one_hot long int bool short byte char size dim ndimension numel nelement stride "
        "storage_offset element_size get_device is_contiguous is_floating_point is_complex is_nonzero "
        "is_same_size is_conj is_neg data_ptr is_inference result_type"
    ),
)
register(read_number, named("item tolist numpy", spaces=(Tensor,)))
