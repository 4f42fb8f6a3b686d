"""The tangent of attention as one Triton kernel: the loop of `attention_blocks` with its blocks in registers.

A program takes ROWS queries of one head and goes through the keys once, with five matrix products for each block
beside the two of a plain forward pass. Only the tangent is stored. The value and its backward pass are torch's
own fused kernels: they are tuned for each GPU and give the bits of a plain forward pass. A kernel that also computed
the value would save one matrix product of the seven, and would need its own backward pass.

With TRITON_INTERPRET=1, set before this file is imported, the kernel runs on CPU tensors, slowly; the tests use this.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

# ----------------------------------------------------------------------------------------------------------------------
# The kernel.


@triton.jit
def _tile(matrix, row, rows, WIDTH: tl.constexpr, PADDED: tl.constexpr):
    """Some rows of a matrix (rows, WIDTH), zeros beyond its edges."""
    column = tl.arange(0, PADDED)
    inside = (row[:, None] < rows) & (column[None, :] < WIDTH)
    return tl.load(matrix + row[:, None] * WIDTH + column[None, :], mask=inside, other=0.0)


@triton.jit
def _product(a, b, PRECISION: tl.constexpr, WIDE: tl.constexpr):
    """a b, summed in float32. WIDE: the interpreter multiplies the bit patterns of bfloat16, so it gets float32."""
    if WIDE:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _not_zero(total):
    """A query that sees no key has weights of sum 0; its tangent is 0 / 1."""
    return tl.where(total == 0.0, 1.0, total)


@triton.jit
def _masked(scores, mask, row, column, queries, keys, mask_row, mask_column, KIND: tl.constexpr):
    """The scores with a mask applied: KIND 1 is added, 2 is boolean; -inf beyond the last key."""
    inside = (row[:, None] < queries) & (column[None, :] < keys)
    seen = column[None, :] < keys
    if KIND > 0:
        place = mask + row[:, None].to(tl.int64) * mask_row + column[None, :].to(tl.int64) * mask_column
        part = tl.load(place, mask=inside, other=0)
        if KIND == 2:
            seen = seen & (part != 0)
        else:
            scores += part.to(tl.float32)
    return tl.where(seen, scores, float("-inf"))


@triton.jit
def _slope(
    q, k, dq, dk, scale,
    Q_MOVES: tl.constexpr, K_MOVES: tl.constexpr, PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """dS = scale (dq k^T + q dk^T)."""
    if Q_MOVES and K_MOVES:
        total = _product(dq, tl.trans(k), PRECISION, WIDE) + _product(q, tl.trans(dk), PRECISION, WIDE)
    elif Q_MOVES:
        total = _product(dq, tl.trans(k), PRECISION, WIDE)
    else:
        total = _product(q, tl.trans(dk), PRECISION, WIDE)
    return total * scale


@triton.jit
def tangent_kernel(
    q_, k_, v_, dq_, dk_, dv_, y_, mask, out, scale, heads, queries, keys,
    mask_batch, mask_head, mask_row, mask_column,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, V_WIDTH: tl.constexpr, V_PADDED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, KIND: tl.constexpr, CAUSAL: tl.constexpr,
    Q_MOVES: tl.constexpr, K_MOVES: tl.constexpr, V_MOVES: tl.constexpr,
    PRECISION: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The names of the sums are those of `attention_blocks._rows`."""
    blocks = tl.cdiv(queries, ROWS)
    block, head = tl.program_id(0) % blocks, (tl.program_id(0) // blocks).to(tl.int64)
    row = block * ROWS + tl.arange(0, ROWS)
    of_q, of_k = head * queries * WIDTH, head * keys * WIDTH
    of_v, of_y = head * keys * V_WIDTH, head * queries * V_WIDTH
    mask += (head // heads) * mask_batch + (head % heads) * mask_head
    q = _tile(q_ + of_q, row, queries, WIDTH, PADDED)
    dq = _tile(dq_ + of_q, row, queries, WIDTH, PADDED) if Q_MOVES else q
    m = tl.full([ROWS], -3.4028234e38, tl.float32)
    total, mean, mu = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    moved = tl.zeros([ROWS, V_PADDED], tl.float32)
    end = tl.minimum(keys, (block + 1) * ROWS) if CAUSAL else keys
    for start in range(0, end, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        k = _tile(k_ + of_k, column, keys, WIDTH, PADDED)
        scores = _product(q, tl.trans(k), PRECISION, WIDE) * scale
        if CAUSAL:
            scores = tl.where(column[None, :] <= row[:, None], scores, float("-inf"))
        scores = _masked(scores, mask, row, column, queries, keys, mask_row, mask_column, KIND)
        highest = tl.maximum(m, tl.max(scores, 1))
        weights, fade = tl.exp(scores - highest[:, None]), tl.exp(m - highest)
        total = total * fade + tl.sum(weights, 1)
        moved = moved * fade[:, None]
        m = highest
        if V_MOVES:
            dv = _tile(dv_ + of_v, column, keys, V_WIDTH, V_PADDED)
            moved += _product(weights.to(dv.dtype), dv, PRECISION, WIDE)
        if Q_MOVES or K_MOVES:
            dk = _tile(dk_ + of_k, column, keys, WIDTH, PADDED) if K_MOVES else k
            slope = _slope(q, k, dq, dk, scale, Q_MOVES, K_MOVES, PRECISION, WIDE)
            first = tl.sum(weights * slope, 1) / _not_zero(total)
            mean = tl.where(start == 0, first, mean)
            slope = (slope - mean[:, None]) * weights
            mu = mu * fade + tl.sum(slope, 1)
            v = _tile(v_ + of_v, column, keys, V_WIDTH, V_PADDED)
            moved += _product(slope.to(v.dtype), v, PRECISION, WIDE)
    y = _tile(y_ + of_y, row, queries, V_WIDTH, V_PADDED).to(tl.float32)
    moved = (moved - mu[:, None] * y) / _not_zero(total)[:, None]
    v_column = tl.arange(0, V_PADDED)
    inside = (row[:, None] < queries) & (v_column[None, :] < V_WIDTH)
    place = out + of_y + row[:, None] * V_WIDTH + v_column[None, :]
    tl.store(place, moved.to(out.dtype.element_ty), mask=inside)


# ----------------------------------------------------------------------------------------------------------------------
# Its launch.


def tangent(
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
    """As `attention_blocks.tangent_by_blocks`, for float32, float16 and bfloat16, and heads up to `largest_head`.

    Products are computed in the dtype of y: under autocast q, k and v have a wider one.
    """
    q, k, v, y = (item.to(y.dtype).contiguous() for item in (q, k, v, y))
    dq, dk, dv = (None if item is None else item.to(y.dtype).contiguous() for item in (dq, dk, dv))
    out = torch.empty_like(y)
    settings = launch_settings(q.dtype, q.shape[-1], v.shape[-1])
    blocks = triton.cdiv(q.shape[2], settings["ROWS"])
    kind, mask, strides = _mask_arguments(mask, (*q.shape[:3], k.shape[2]))
    tensors = (
        q,
        k,
        v,
        *(q if item is None else item for item in (dq, dk, dv)),
        y,
        q if mask is None else mask,
    )
    with _device(q):
        tangent_kernel[(blocks * q.shape[0] * q.shape[1],)](
            *tensors, out, scale, q.shape[1], q.shape[2], k.shape[2], *strides,
            KIND=kind, CAUSAL=is_causal,
            Q_MOVES=dq is not None, K_MOVES=dk is not None, V_MOVES=dv is not None,
            WIDE=not q.is_cuda and q.dtype == torch.bfloat16, **settings,
        )  # fmt: skip
    return out


# Bytes of a number -> head size, padded -> rows, columns, warps and stages of a block. Chosen by compiling for sm_80
# and sm_90: the largest that spill little out of the registers. No GPU was there to time them on.
BLOCKS = {
    2: {64: (64, 64, 4, 2), 128: (64, 32, 8, 2), 256: (16, 32, 8, 1)},
    4: {32: (32, 32, 4, 2), 64: (16, 32, 4, 1)},
}


def largest_head(dtype: torch.dtype) -> int:
    """The largest head size that the kernel takes."""
    return max(BLOCKS.get(dtype.itemsize, {0: ()}))


def launch_settings(dtype: torch.dtype, width: int, v_width: int) -> dict[str, Any]:
    """Constants of the kernel for these head sizes.

    A float32 product is computed as three products in TF32, which together are about as exact, or as one where
    torch.set_float32_matmul_precision allows that for torch's own products.
    """
    padded, v_padded = (max(16, triton.next_power_of_2(size)) for size in (width, v_width))
    sizes = BLOCKS[dtype.itemsize]
    rows, columns, warps, stages = sizes[min(size for size in sizes if size >= max(padded, v_padded))]
    exact = torch.get_float32_matmul_precision() == "highest"
    return {
        "WIDTH": width,
        "PADDED": padded,
        "V_WIDTH": v_width,
        "V_PADDED": v_padded,
        "ROWS": rows,
        "COLUMNS": columns,
        "PRECISION": "tf32x3" if exact and dtype == torch.float32 else "tf32",
        "num_warps": warps,
        "num_stages": stages,
    }


def _mask_arguments(
    mask: Tensor | None, shape: tuple[int, ...]
) -> tuple[int, Tensor | None, tuple[int, ...]]:
    """The kind of the mask, the mask as numbers, and its strides; those of sizes that are repeated are 0."""
    if mask is None:
        return 0, None, (0, 0, 0, 0)
    boolean = mask.dtype == torch.bool
    expanded = (mask.view(torch.uint8) if boolean else mask).expand(shape)
    return (2 if boolean else 1), expanded, expanded.stride()


def _device(q: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(q.device) if q.is_cuda else nullcontext()
