"""The rule of scaled_dot_product_attention: the value by torch's fused kernels, the tangent without a stored matrix.

The value and its backward pass are torch's own, which save no probabilities; a plain forward pass gives the same bits.
The tangent is computed from the full matrix of probabilities where that is small (it is not stored for the backward
pass), else block by block: by a Triton kernel on CUDA, in torch elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual.attention_blocks import tangent_by_blocks
from trigflow.dual.linear import Work, register
from trigflow.dual.neural import softmax_tangent
from trigflow.dual.value import Dual, value_of
from trigflow.system.devices import without_autocast

# Up to this many queries x keys, and elements over all heads, the tangent takes the full matrix. Measured on one core:
# up to N = 256 both take the same time in float32, and the matrix takes less in bfloat16; from N = 1024 on blocks take
# two thirds of its time or less. Besides, torch.compile fuses the matrix with what is around it.
FULL_MATRIX = 256 * 256
FULL_ELEMENTS = 2**26


def attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Any, Work]:
    """softmax(scale q k^T + mask) v, and its tangent.

    With dropout on the probabilities, or a mask that has a tangent, attention is written out with the full matrix;
    value and tangent have the same dropout mask.
    """
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if dropout_p > 0 or isinstance(attn_mask, Dual):
        return _written_out(query, key, value, attn_mask, dropout_p, is_causal, factor, enable_gqa)
    small = query.shape[-2] * key.shape[-2] <= FULL_MATRIX
    if small and math.prod(query.shape[:-1]) * key.shape[-2] <= FULL_ELEMENTS:
        return _with_full_matrix(func, query, key, value, attn_mask, is_causal, factor, enable_gqa)
    if enable_gqa:
        key, value = _repeated(key, query), _repeated(value, query)
    return _without_matrix(func, query, key, value, attn_mask, is_causal, factor)


def _repeated(item: Any, query: Any) -> Any:
    """Keys or values of fewer heads than the queries, each repeated for its group."""
    return item.repeat_interleave(query.shape[-3] // item.shape[-3], dim=-3)


# ----------------------------------------------------------------------------------------------------------------------
# With the matrix of probabilities.


def _written_out(
    q: Any, k: Any, v: Any, mask: Any, p: float, is_causal: bool, scale: float, gqa: bool
) -> tuple[Any, Work]:
    """Attention in functions that have rules of their own."""
    if gqa:
        k, v = _repeated(k, q), _repeated(v, q)
    scores = torch.matmul(q, k.transpose(-2, -1)) * scale
    bias = mask if isinstance(mask, Dual) else _bias(mask, is_causal, q, k)
    probabilities = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    output: Any = torch.matmul(F.dropout(probabilities, p), v)
    return output.value, lambda: output.tangent


def _with_full_matrix(
    func: Any, q: Any, k: Any, v: Any, mask: Tensor | None, is_causal: bool, scale: float, gqa: bool
) -> tuple[Any, Work]:
    """With S = scale q k^T + mask and P = softmax(S): d(P v) = P dv + [P (dS - sum(P dS))] v, and no P is kept."""
    values = (value_of(item) for item in (q, k, v))
    output = func(*values, mask, 0.0, is_causal=is_causal, scale=scale, enable_gqa=gqa)

    def tangent() -> Tensor:
        keys, vectors = (_repeated(item, q) for item in (k, v)) if gqa else (k, v)
        return _full_tangent(q, keys, vectors, _bias(mask, is_causal, q, keys), scale)

    return output, tangent


def _bias(mask: Tensor | None, is_causal: bool, query: Any, key: Any) -> Tensor | None:
    """What is added to the scores: 0 and -inf where the mask is boolean or causal."""
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, -math.inf)


def _full_tangent(query: Any, key: Any, value: Any, bias: Tensor | None, scale: float) -> Tensor:
    q, k, v = value_of(query) * scale, value_of(key), value_of(value)
    scores = q @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    p = torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    if bias is not None:
        p = p.nan_to_num(0.0)  # a row that may look nowhere: its output is 0 in torch's kernels
    total: Any = p.to(v.dtype) @ value.tangent if isinstance(value, Dual) else 0
    if isinstance(query, Dual) or isinstance(key, Dual):
        moved = softmax_tangent(_score_tangent(query, key, q, k, scale), p, -1).to(v.dtype) @ v
        total = moved + total
    return total  # type: ignore[no-any-return]


def _score_tangent(query: Any, key: Any, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """scale (dq k^T + q dk^T), as one product of twice the width where both move."""
    if not isinstance(key, Dual):
        return (query.tangent * scale) @ k.transpose(-2, -1)  # type: ignore[no-any-return]
    if not isinstance(query, Dual):
        return q @ key.tangent.transpose(-2, -1)
    left = torch.cat([query.tangent * scale, q], dim=-1)
    return left @ torch.cat([k, key.tangent], dim=-1).transpose(-2, -1)


# ----------------------------------------------------------------------------------------------------------------------
# Without it.


def _without_matrix(
    func: Any, query: Any, key: Any, value: Any, mask: Tensor | None, is_causal: bool, scale: float
) -> tuple[Any, Work]:
    """Torch's fused kernels take four dimensions, with equal leading ones and equal head sizes, and step by one through
    the last: anything else is brought into that form, or torch would write the matrix out.
    """
    items = (query, key, value)
    lead = _lead(*items, mask)
    q, k, v = (_four(value_of(item), lead) for item in items)
    mask = None if mask is None else _four_mask(mask, lead)
    width = max(q.shape[-1], v.shape[-1])
    padded = (_padded(item, width) for item in (q, k, v))
    output = func(*padded, mask, 0.0, is_causal=is_causal, scale=scale)[..., : v.shape[-1]]

    def tangent() -> Tensor:
        moving = (_four(item.tangent, lead) if isinstance(item, Dual) else None for item in items)
        moved = _tangent_function()(q, k, v, *moving, output.detach(), mask, is_causal, scale)
        return moved.reshape(*lead, *moved.shape[-2:])

    return output.reshape(*lead, *output.shape[-2:]), tangent


def _lead(query: Any, key: Any, value: Any, mask: Tensor | None) -> tuple[int, ...]:
    """The leading dimensions of the output."""
    shapes = [item.shape[:-2] for item in (query, key, value)]
    shapes += [] if mask is None else [mask.shape[:-2]]
    lead: tuple[int, ...] = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    return lead


def _heads(lead: tuple[int, ...]) -> tuple[int, int]:
    """The leading dimensions as two."""
    return (math.prod(lead[:-1]), lead[-1]) if lead else (1, 1)


def _four(item: Tensor, lead: tuple[int, ...]) -> Tensor:
    """(..., N, d) as (B, H, N, d), without a copy where that can be."""
    return item.expand(*lead, *item.shape[-2:]).reshape(*_heads(lead), *item.shape[-2:])


def _four_mask(mask: Tensor, lead: tuple[int, ...]) -> Tensor:
    """(..., n, m) as (b, h, n, m); n = 1 or m = 1 stay so, b and h where there are but two leading dimensions."""
    if len(lead) <= 2:
        return mask.reshape(*(1,) * (4 - mask.ndim), *mask.shape)
    return _four(mask, lead)


def _padded(item: Tensor, width: int) -> Tensor:
    """Zeros change neither products nor sums."""
    item = F.pad(item, (0, width - item.shape[-1])) if item.shape[-1] < width else item
    return item if item.stride(-1) == 1 else item.contiguous()


def _tangent_function() -> Callable[..., Tensor]:
    """To torch.compile the blocks are one operation: traced, thousands of them would be compiled one by one."""
    return _tangent_operation if torch.compiler.is_compiling() else _tangent


def _tangent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    y: Tensor,
    mask: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """See `tangent_by_blocks`. Autocast is off: blocks have the precision of the tensors, or are summed in float32."""
    with without_autocast(q.device):
        kernel = _kernel(q, y)
        if kernel is not None:
            moved: Tensor = kernel.tangent(q, k, v, dq, dk, dv, y, mask, is_causal, scale)
            return moved
        return tangent_by_blocks(q, k, v, dq, dk, dv, y, mask, is_causal, scale)


_tangent_operation = torch.library.custom_op("trigflow::attention_tangent", _tangent, mutates_args=())


@_tangent_operation.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, dq: Any, dk: Any, dv: Any, y: Tensor, *args: Any) -> Tensor:
    return y.new_empty(y.shape)


# ----------------------------------------------------------------------------------------------------------------------
# The Triton kernel.


def _kernel(q: Tensor, y: Tensor) -> Any:
    """The module of the kernel, where it takes these tensors: Triton is there, and the GPU not older than sm_80.

    TRIGFLOW_TRITON=0 turns it off.
    """
    if os.environ.get("TRIGFLOW_TRITON") == "0" or not _triton_runs_on(q) or not _has_triton():
        return None
    module: Any = importlib.import_module("trigflow.dual.attention_triton")
    return module if max(q.shape[-1], y.shape[-1]) <= module.largest_head(y.dtype) else None


def _triton_runs_on(q: Tensor) -> bool:
    if q.is_cuda:
        return torch.cuda.get_device_capability(q.device) >= (8, 0) and _has_compiler()
    return q.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"  # as the tests run it


@functools.cache
def _has_compiler() -> bool:
    """Of C, with which Triton compiles what launches a kernel; slim containers have none."""
    return any(shutil.which(name) for name in (os.environ.get("CC", ""), "gcc", "clang") if name)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


register(attention, [F.scaled_dot_product_attention])
