"""Rules of functions that are linear in their arguments: shapes, sums, products, linear layers, convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual.value import RULES, Dual, Rule, duals_in, fallback, value_of

Work = Callable[[], Any]


def named(names: str, spaces: tuple[Any, ...] = (torch, Tensor, F)) -> list[Any]:
    """The functions of these names (with spaces between), in each of the spaces that has them."""
    found = [getattr(space, name, None) for name in names.split() for space in spaces]
    return [func for func in found if callable(func)]


def register(rule: Rule, functions: list[Any]) -> None:
    """Give each of the functions this rule."""
    RULES.update(dict.fromkeys(functions, rule))


# ----------------------------------------------------------------------------------------------------------------------
# Linear in the first argument: d f(x, ...) = f(dx, ...).


def linear_in_first(func: Any, x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Work | None]:
    if not isinstance(x, Dual) or duals_in((args, kwargs)):
        return fallback(func, x, *args, **kwargs)
    return func(x.value, *args, **kwargs), lambda: func(x.tangent, *args, **kwargs)


register(
    linear_in_first,
    named(
        "reshape flatten ravel permute transpose swapaxes swapdims movedim moveaxis t adjoint "
        "squeeze unsqueeze expand broadcast_to contiguous clone narrow select unbind chunk split "
        "split_with_sizes tensor_split __getitem__ index_select gather take_along_dim "
        "masked_select diagonal diag diag_embed flip roll rot90 repeat repeat_interleave tile "
        "unfold fold pixel_shuffle pixel_unshuffle tril triu sum mean cumsum trace neg "
        "negative positive real view_as_real view_as_complex interpolate upsample avg_pool1d "
        "avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d to "
        "float double half bfloat16 type cpu cuda"
    ),
)
register(
    linear_in_first,
    named(
        "fft ifft fft2 ifft2 fftn ifftn fftshift ifftshift rfft irfft rfft2 irfft2 rfftn irfftn",
        spaces=(torch.fft,),
    ),
)


def diff(
    func: Any, x: Any, n: int = 1, dim: int = -1, prepend: Any = None, append: Any = None
) -> tuple[Any, Work | None]:
    """Linear in x; with prepend or append by torch.func.jvp, since these may be Duals as well."""
    if prepend is not None or append is not None:
        return fallback(func, x, n, dim, prepend, append)
    return linear_in_first(func, x, n, dim)


register(diff, named("diff"))


def split_method(_: Any, x: Dual, *args: Any, **kwargs: Any) -> tuple[Any, Work | None]:
    """x.split(...), by the function: the method is Python that torch.compile does not follow; likewise unflatten."""
    return linear_in_first(torch.split, x, *args, **kwargs)


def unflatten(_: Any, x: Dual, *args: Any, **kwargs: Any) -> tuple[Any, Work | None]:
    return linear_in_first(torch.unflatten, x, *args, **kwargs)


register(split_method, [Tensor.split])
register(unflatten, named("unflatten"))


def view(func: Any, x: Dual, *shape: Any, **kwargs: Any) -> tuple[Any, Work]:
    """The tangent may lie in memory in another order, so it is reshaped."""
    if shape and isinstance(shape[0], torch.dtype):
        return fallback(func, x, *shape, **kwargs)
    value = func(x.value, *shape, **kwargs)
    return value, lambda: x.tangent.reshape(value.shape)


register(view, named("view"))


def like_another(func: Any, x: Any, other: Any) -> tuple[Any, Work | None]:
    """x with the shape or dtype of another tensor, of which nothing else is read."""
    value = func(value_of(x), value_of(other))
    if not isinstance(x, Dual):
        return value, None
    return (
        value,
        lambda: x.tangent.expand(value.shape) if func is Tensor.expand_as else x.tangent.reshape(value.shape),
    )


register(like_another, named("view_as expand_as reshape_as type_as"))


def pad(
    func: Any, x: Dual, widths: Any, mode: str = "constant", value: float | None = None
) -> tuple[Any, Work]:
    """Padding; the constant has tangent zero."""
    return func(x.value, widths, mode, value), lambda: func(x.tangent, widths, mode)


register(pad, [F.pad])


def masked_fill(func: Any, x: Any, mask: Tensor, value: Any) -> tuple[Any, Work]:
    if not isinstance(x, Dual) or isinstance(value, Dual):
        return fallback(func, x, mask, value)
    return func(x.value, mask, value), lambda: x.tangent.masked_fill(mask, 0)


register(masked_fill, named("masked_fill"))


# ----------------------------------------------------------------------------------------------------------------------
# Sums and lists: what is no Dual has tangent zero.


def _tangent(item: Any) -> Tensor:
    return item.tangent if isinstance(item, Dual) else torch.zeros_like(item)


def _spread(tangent: Tensor, shape: torch.Size) -> Tensor:
    return tangent if tangent.shape == shape else tangent.expand(shape).contiguous()


def add(func: Any, x: Any, y: Any, *, alpha: Any = 1) -> tuple[Any, Work]:
    """x + alpha y, or x - alpha y."""
    value = func(value_of(x), value_of(y), alpha=alpha)

    def tangent() -> Tensor:
        if isinstance(x, Dual) and isinstance(y, Dual):
            return func(x.tangent, y.tangent, alpha=alpha)  # type: ignore[no-any-return]
        if isinstance(x, Dual):
            return _spread(x.tangent, value.shape)
        return _spread(y.tangent * (-alpha if func in _SUBTRACTIONS else alpha), value.shape)

    return value, tangent


_SUBTRACTIONS = set(named("sub subtract"))
register(add, named("add sub subtract"))


def rsub(func: Any, x: Any, y: Any, *, alpha: Any = 1) -> tuple[Any, Work]:
    """y - alpha x."""
    return add(torch.sub, y, x, alpha=alpha)


register(rsub, [torch.rsub, Tensor.__rsub__])


def joined(func: Any, items: Any, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    """cat, stack and similar functions: linear in the whole list."""
    value = func(value_of(items), *args, **kwargs)
    return value, lambda: func([_tangent(item) for item in items], *args, **kwargs)


register(joined, named("cat concat concatenate stack hstack vstack dstack", spaces=(torch,)))


def where(func: Any, *args: Any) -> tuple[Any, Work]:
    """where(condition, x, y), also as x.where(condition, y)."""
    condition, x, y = (args[1], args[0], args[2]) if func is Tensor.where else args
    condition = value_of(condition)
    value = torch.where(condition, value_of(x), value_of(y))
    zero = value.new_zeros(())
    return value, lambda: torch.where(
        condition, x.tangent if isinstance(x, Dual) else zero, y.tangent if isinstance(y, Dual) else zero
    ).expand(value.shape)


register(where, named("where"))


# ----------------------------------------------------------------------------------------------------------------------
# Products: linear in each argument, so the tangent is a sum with one argument at a time replaced by its tangent.


def multilinear(func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    values = value_of(args)
    places = [place for place, item in enumerate(args) if isinstance(item, Dual)]

    def term(place: int) -> Tensor:
        return func(*values[:place], args[place].tangent, *values[place + 1 :], **kwargs)  # type: ignore[no-any-return]

    def tangent() -> Tensor:
        total = term(places[0])
        for place in places[1:]:
            total = total + term(place)
        return total

    return func(*values, **kwargs), tangent


register(multilinear, named("matmul bmm mm mv dot inner outer tensordot kron"))


def einsum(func: Any, equation: str, *operands: Any) -> tuple[Any, Work]:
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    return multilinear(func, equation, *operands)


register(einsum, [torch.einsum])


def mul(func: Any, x: Any, y: Any) -> tuple[Any, Work]:
    """d(xy) = dx y + x dy, the second term fused by addcmul."""
    value = func(value_of(x), value_of(y))

    def tangent() -> Tensor:
        if isinstance(x, Dual) and isinstance(y, Dual):
            return torch.addcmul(x.tangent * y.value, x.value, y.tangent)
        return x.tangent * y if isinstance(x, Dual) else y.tangent * x  # type: ignore[no-any-return]

    return value, tangent


register(mul, named("mul multiply"))


def div(func: Any, x: Any, y: Any, *, rounding_mode: str | None = None) -> tuple[Any, Work | None]:
    """d(x/y) = (dx - (x/y) dy) / y; a rounded quotient has no derivative."""
    if rounding_mode is not None:
        return func(value_of(x), value_of(y), rounding_mode=rounding_mode), None
    value = func(value_of(x), value_of(y))

    def tangent() -> Tensor:
        if not isinstance(y, Dual):
            return x.tangent / y  # type: ignore[no-any-return]
        if not isinstance(x, Dual):
            return value * y.tangent / -y.value  # type: ignore[no-any-return]
        return torch.addcmul(x.tangent, value, y.tangent, value=-1) / y.value

    return value, tangent


register(div, named("div divide true_divide"))


def addcmul(func: Any, x: Any, y: Any, z: Any, *, value: Any = 1) -> tuple[Any, Work]:
    """x + value y z."""
    result = func(value_of(x), value_of(y), value_of(z), value=value)

    def tangent() -> Tensor:
        total = x.tangent if isinstance(x, Dual) else torch.zeros_like(result)
        if isinstance(y, Dual):
            total = total + y.tangent * value_of(z) * value
        if isinstance(z, Dual):
            total = total + z.tangent * value_of(y) * value
        return _spread(total, result.shape)

    return result, tangent


register(addcmul, named("addcmul"))


def addmm(func: Any, x: Any, y: Any, z: Any, *, beta: Any = 1, alpha: Any = 1) -> tuple[Any, Work]:
    """beta x + alpha y z, with the product of matrices, or of batches of them."""
    result = func(value_of(x), value_of(y), value_of(z), beta=beta, alpha=alpha)

    def tangent() -> Tensor:
        total = x.tangent * beta if isinstance(x, Dual) else torch.zeros_like(result)
        for place in (y, z):
            if isinstance(place, Dual):
                left, right = (y.tangent, value_of(z)) if place is y else (value_of(y), z.tangent)
                total = func(total, left, right, beta=1, alpha=alpha)
        return _spread(total, result.shape)

    return result, tangent


register(addmm, named("addmm baddbmm"))


def affine(func: Any, x: Any, weight: Any, bias: Any = None, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    """A linear layer or convolution: the bias has tangent zero, and usually the weight as well."""
    if isinstance(bias, Dual):
        return fallback(func, x, weight, bias, *args, **kwargs)
    value = func(value_of(x), value_of(weight), bias, *args, **kwargs)

    def tangent() -> Tensor:
        terms = []
        if isinstance(x, Dual):
            terms.append(func(x.tangent, value_of(weight), None, *args, **kwargs))
        if isinstance(weight, Dual):
            terms.append(func(value_of(x), weight.tangent, None, *args, **kwargs))
        return terms[0] if len(terms) == 1 else terms[0] + terms[1]  # type: ignore[no-any-return]

    return value, tangent


register(
    affine,
    named("linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", spaces=(F,)),
)
