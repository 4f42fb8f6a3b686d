"""Rules of the layers: softmax, norms, pooling, dropout with one mask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual.linear import Work, named, register
from trigflow.dual.value import Dual, duals_in, fallback
from trigflow.system.devices import autocast_is_on
from trigflow.system.errors import UserError

aten = torch.ops.aten


class TiedBatch(UserError):
    """A layer whose output for one image depends on the other images of the batch."""


# ----------------------------------------------------------------------------------------------------------------------
# Softmax and its kind.


def softmax_tangent(dx: Tensor, y: Tensor, dim: int) -> Tensor:
    """dy = y (dx - sum(y dx)) of y = softmax(x): a symmetric matrix, so the kernel of the backward pass serves."""
    return torch._softmax_backward_data(dx.to(y.dtype), y, dim, y.dtype)


def softmax(func: Any, x: Dual, dim: int, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    value = func(x.value, dim, *args, **kwargs)
    return value, lambda: softmax_tangent(x.tangent, value, dim)


def log_softmax(func: Any, x: Dual, dim: int, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    """dy = dx - sum(softmax(x) dx)."""
    value = func(x.value, dim, *args, **kwargs)
    return value, lambda: x.tangent - (value.exp() * x.tangent).sum(dim, keepdim=True)


def logsumexp(func: Any, x: Dual, dim: Any, keepdim: bool = False) -> tuple[Any, Work]:
    """dy = sum(softmax(x) dx)."""
    value = func(x.value, dim, keepdim=keepdim)

    def tangent() -> Tensor:
        total = torch.logsumexp(x.value, dim, keepdim=True)
        return ((x.value - total).exp() * x.tangent).sum(dim, keepdim=keepdim)

    return value, tangent


register(softmax, named("softmax"))
register(log_softmax, named("log_softmax"))
register(logsumexp, named("logsumexp"))


# ----------------------------------------------------------------------------------------------------------------------
# Norms. With x_hat = (x - mean) rstd:  dx_hat = rstd (dx - mean(dx) - x_hat mean(x_hat dx)), again a symmetric matrix.


def _full_precision(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and not autocast_is_on(x.device)


def _centred(dx: Tensor, x: Tensor, dims: list[int], eps: float) -> Tensor:
    """dx_hat written out, in float32 where x has less."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, dx = x.to(dtype), dx.to(dtype)
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
    rstd = torch.rsqrt(var + eps)
    x_hat = (x - mean) * rstd
    dx_hat: Tensor = rstd * (dx - dx.mean(dims, keepdim=True) - x_hat * (x_hat * dx).mean(dims, keepdim=True))
    return dx_hat


def layer_norm(
    func: Any,
    x: Any,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    *args: Any,
) -> tuple[Any, Work]:
    if not isinstance(x, Dual) or duals_in((weight, bias)):
        return fallback(func, x, shape, weight, bias, eps, *args)
    dims = list(range(-len(shape), 0))

    def scaled(dx_hat: Tensor) -> Tensor:
        return dx_hat if weight is None else dx_hat * weight

    if not _full_precision(x.value):
        value = func(x.value, shape, weight, bias, eps, *args)
        return value, lambda: scaled(_centred(x.tangent, x.value, dims, eps))
    value, mean, rstd = torch.native_layer_norm(x.value, list(shape), weight, bias, eps)
    return value, lambda: scaled(_layer_norm_kernel(x.tangent, x.value, shape, mean, rstd))


def _layer_norm_kernel(dx: Tensor, x: Tensor, shape: Sequence[int], mean: Tensor, rstd: Tensor) -> Tensor:
    mask = [True, False, False]
    gradients = aten.native_layer_norm_backward(dx.contiguous(), x, list(shape), mean, rstd, None, None, mask)
    dx_hat: Tensor = gradients[0]
    return dx_hat


def _scaled(x: Tensor, weight: Tensor | None) -> Tensor:
    """x with each channel times its weight."""
    return x if weight is None else x * weight.reshape(-1, *(1,) * (x.ndim - 2))


def group_norm(
    func: Any, x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, *args: Any
) -> tuple[Any, Work]:
    if not isinstance(x, Dual) or duals_in((weight, bias)):
        return fallback(func, x, num_groups, weight, bias, eps, *args)
    value = func(x.value, num_groups, weight, bias, eps, *args)

    def tangent() -> Tensor:
        groups = (x.shape[0], num_groups, -1)
        dx_hat = _centred(x.tangent.reshape(groups), x.value.reshape(groups), [2], eps).reshape(x.shape)
        return _scaled(dx_hat, weight)

    return value, tangent


def instance_norm(
    func: Any,
    x: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    use_input_stats: bool,
    *args: Any,
) -> tuple[Any, Work]:
    """Statistics of each image and channel. args: momentum, eps, cudnn."""
    rest = (weight, bias, running_mean, running_var, use_input_stats, *args)
    if not use_input_stats or not isinstance(x, Dual) or duals_in(rest):
        return fallback(func, x, *rest)
    dims = list(range(2, x.ndim))
    value = func(x.value, *rest)
    return value, lambda: _scaled(_centred(x.tangent, x.value, dims, args[1]), weight)


def batch_norm(
    func: Any,
    x: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Any, Work]:
    """A fixed affine map in evaluation mode. In training mode it mixes the images of a batch: an error."""
    if training:
        raise TiedBatch(
            "BatchNorm in training mode makes the derivative of one image depend on the others and writes its running"
            " statistics in forward; use GroupNorm, LayerNorm or a pixel norm"
        )
    if not isinstance(x, Dual) or duals_in((weight, bias)):
        return fallback(func, x, running_mean, running_var, weight, bias, training, momentum, eps)
    value = func(x.value, running_mean, running_var, weight, bias, training, momentum, eps)
    return value, lambda: _scaled(_scaled(x.tangent, torch.rsqrt(running_var + eps)), weight)


def rms_norm(func: Any, x: Any, shape: Any, weight: Any = None, eps: float | None = None) -> tuple[Any, Work]:
    """y = x r with r = 1/sqrt(mean(x^2) + eps):  dy = r (dx - x_hat mean(x_hat dx)), x_hat = x r."""
    if not isinstance(x, Dual) or duals_in(weight):
        return fallback(func, x, shape, weight, eps)
    value = func(x.value, shape, weight, eps)
    dims = list(range(-len(shape), 0))

    def tangent() -> Tensor:
        dtype = torch.promote_types(x.dtype, torch.float32)
        a, da = x.value.to(dtype), x.tangent.to(dtype)
        rrms = torch.rsqrt(
            (a * a).mean(dims, keepdim=True) + (torch.finfo(x.dtype).eps if eps is None else eps)
        )
        x_hat = a * rrms
        dx_hat = rrms * torch.addcmul(da, x_hat, (x_hat * da).mean(dims, keepdim=True), value=-1)
        dx_hat = dx_hat.to(x.dtype)
        return dx_hat if weight is None else dx_hat * weight

    return value, tangent


register(layer_norm, [torch.layer_norm, F.layer_norm])
register(group_norm, [torch.group_norm, F.group_norm])
register(instance_norm, [torch.instance_norm])
register(batch_norm, [F.batch_norm])
register(rms_norm, [torch.rms_norm, F.rms_norm])


def vector_norm(
    func: Any, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any
) -> tuple[Any, Work]:
    """The Euclidean norm: dn = sum(x dx) / n, and 0 where n is 0."""
    if ord != 2 or not isinstance(x, Dual) or x.value.is_complex():
        return fallback(func, x, ord, dim, keepdim, **kwargs)
    value = func(x.value, ord, dim, keepdim, **kwargs)

    def tangent() -> Tensor:
        dtype = torch.promote_types(value.dtype, torch.float32)  # the products may be too large for float16
        dot = x.value.to(dtype) * x.tangent.to(dtype)
        total = dot.sum() if dim is None and not keepdim else dot.sum(dim, keepdim=keepdim)
        return torch.where(value == 0, 0, total / value)

    return value, tangent


register(vector_norm, [torch.linalg.vector_norm])


# ----------------------------------------------------------------------------------------------------------------------
# Pooling and extremes: the tangent of the element that was taken.


def _max_pool(dims: int) -> Any:
    with_indices = getattr(F, f"max_pool{dims}d_with_indices")

    def rule(func: Any, x: Dual, *args: Any, return_indices: bool = False, **kwargs: Any) -> tuple[Any, Work]:
        value, indices = with_indices(x.value, *args, **kwargs)

        def tangent() -> Tensor:
            flat = x.tangent.flatten(-dims).gather(-1, indices.flatten(-dims))
            return flat.reshape(value.shape)

        if return_indices:
            return (value, indices), lambda: (tangent(), indices)
        return value, tangent

    return rule


for _dims in (1, 2, 3):
    register(_max_pool(_dims), [getattr(F, f"max_pool{_dims}d")])


def extreme(func: Any, x: Any, *args: Any, **kwargs: Any) -> tuple[Any, Work]:
    """max and min over one dimension; over all elements, or of two tensors, by torch.func.jvp."""
    dim = args[0] if args else kwargs.get("dim")
    if not isinstance(x, Dual) or not isinstance(dim, int) or isinstance(dim, bool):
        return fallback(func, x, *args, **kwargs)
    both = func(x.value, *args, **kwargs)
    value, indices = both
    keepdim = value.ndim == x.ndim

    def tangent() -> tuple[Tensor, Tensor]:
        index = indices if keepdim else indices.unsqueeze(dim)
        taken = x.tangent.gather(dim, index)
        return (taken if keepdim else taken.squeeze(dim)), indices

    return both, tangent


register(extreme, named("max min"))


# ----------------------------------------------------------------------------------------------------------------------
# Dropout: the mask is drawn once, from ones, as torch draws it.


def dropout(
    func: Any, x: Dual, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Any, Work]:
    if not training or p == 0:
        return x.value, lambda: x.tangent
    with torch.no_grad():
        kept = func(torch.ones_like(x.value), p, True) != 0
    scale = 1 / (1 - p) if p < 1 else 0.0
    return x.value * kept * scale, lambda: x.tangent * kept * scale


register(dropout, [F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, torch.dropout])
