"""The tangent of attention by blocks of queries and keys, without allocating the N x M matrix.

The forward pass of flash attention with two more sums (arXiv 2410.11081, appendix F). With the scores S of a query to
all keys, their tangent dS, the output y, and the weights w = e^(S - m) for any m, whose sum is l,

    dy = [sum w (dS - c) v + sum w dv - y sum w (dS - c)] / l,    for any number c of the query.

Keys are processed one block at a time. m is the running maximum of the scores, and the sums of earlier blocks are
rescaled by e^(m before - m now). c is the mean of dS over the first block: the part of dS that all keys share cancels
between the sums; subtracted beforehand it causes no rounding error, as it else would where y is in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# The size of a block on the CPU, and the elements of the largest one over all heads: beyond, heads go in groups.
# Measured on one core (float32, heads of 64): 128 x 256 to 256 x 256 are alike, 64 x 64 is a fifth slower, and so
# are groups that leave the cache.
ROWS, COLUMNS, ELEMENTS = 128, 256, 2**20
# Elsewhere starting an operation costs more than a block of that size does.
LARGE_ROWS, LARGE_COLUMNS, LARGE_ELEMENTS = 1024, 1024, 2**26


@dataclass(frozen=True)
class Pattern:
    """Which keys a query sees.

    Args:
        mask: added to the scores, or boolean and True where a key is seen; (b, h, n, m), each the full size or 1.
        is_causal: query i sees the keys up to i.
        heads: H, of the mask's B x H.
    """

    mask: Tensor | None
    is_causal: bool
    heads: int

    def end(self, rows: slice, keys: int) -> int:
        """The keys that some query of the block may see."""
        return min(keys, rows.stop) if self.is_causal else keys

    def apply(self, scores: Tensor, group: slice, rows: slice, columns: slice) -> Tensor:
        """The scores of a block, (group, rows, columns), with -inf where nothing is seen."""
        if self.is_causal and columns.stop > rows.start + 1:
            query = torch.arange(rows.start, rows.stop, device=scores.device)
            key = torch.arange(columns.start, columns.stop, device=scores.device)
            scores = scores.masked_fill_(key > query[:, None], -math.inf)
        if self.mask is None:
            return scores
        part = self._part(self.mask, group, rows, columns)
        return scores.masked_fill_(~part, -math.inf) if part.dtype == torch.bool else scores.add_(part)

    def _part(self, mask: Tensor, group: slice, rows: slice, columns: slice) -> Tensor:
        part = mask[:, :, rows if mask.shape[2] > 1 else slice(None), :]
        part = part[..., columns if mask.shape[3] > 1 else slice(None)]
        if mask.shape[0] == mask.shape[1] == 1:
            return part[0]
        index = torch.arange(group.start, group.stop, device=mask.device)
        batch, head = index // self.heads, index % self.heads
        return part[batch if mask.shape[0] > 1 else 0, head if mask.shape[1] > 1 else 0]


@dataclass(frozen=True)
class AttentionParts:
    """The factors of S = a b^T, of dS = left right^T, and the values; each (B x H, N or M, width), None: no tangent."""

    a: Tensor
    b: Tensor
    left: Tensor | None
    right: Tensor | None
    v: Tensor
    dv: Tensor | None


def tangent_by_blocks(
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
    """d softmax(scale q k^T + mask) v along dq, dk and dv, accumulated in float32 at least.

    Args:
        q, k, v: (B, H, N, d), (B, H, M, d) and (B, H, M, e).
        dq, dk, dv: their tangents, None for a tangent of zero.
        y: the output, (B, H, N, e).
        mask: see `Pattern`.
        is_causal: query i sees the keys up to i.
        scale: factor of the scores.

    Returns:
        (B, H, N, e), of the type of y.
    """
    if not y.numel():
        return torch.zeros_like(y)
    parts = _parts(q, k, v, dq, dk, dv, scale)
    pattern = Pattern(mask, is_causal, q.shape[1])
    output = _flat(y)
    result = torch.empty_like(output)
    heads, queries = output.shape[:2]
    rows, columns, group = _block(heads, queries, k.shape[-2], q.device)
    for some in _slices(heads, group):
        for part in _slices(queries, rows):
            result[some, part] = _rows(parts, pattern, output[some, part], some, part, columns)
    return result.reshape(y.shape)


def _parts(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor | None, dk: Tensor | None, dv: Tensor | None, scale: float
) -> AttentionParts:
    """dS = scale (dq k^T + q dk^T), as one product of twice the width where both move."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    a, b, left, right = _flat(q, dtype) * scale, _flat(k, dtype), None, None
    moving = [(_flat(dq, dtype) * scale, b)] if dq is not None else []
    moving += [(a, _flat(dk, dtype))] if dk is not None else []
    if moving:
        left, right = (torch.cat(factors, dim=-1) for factors in zip(*moving, strict=True))
    return AttentionParts(a, b, left, right, _flat(v, dtype), None if dv is None else _flat(dv, dtype))


def _flat(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """(B, H, N, d) as (B x H, N, d), contiguous."""
    return x.to(dtype or x.dtype).reshape(-1, *x.shape[-2:]).contiguous()


def _block(heads: int, queries: int, keys: int, device: torch.device) -> tuple[int, int, int]:
    """Rows, columns and heads of a block."""
    on_cpu = device.type == "cpu"
    rows, columns, elements = (
        (ROWS, COLUMNS, ELEMENTS) if on_cpu else (LARGE_ROWS, LARGE_COLUMNS, LARGE_ELEMENTS)
    )
    rows, columns = min(rows, queries), min(columns, keys)
    return rows, columns, min(heads, max(1, elements // (rows * columns)))


def _slices(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))


def _rows(
    parts: AttentionParts, pattern: Pattern, y: Tensor, group: slice, rows: slice, columns: int
) -> Tensor:
    """The tangent of some queries of some heads, (group, rows, e); y is their output."""
    a, left = parts.a[group, rows], None if parts.left is None else parts.left[group, rows]
    # Below every score and yet finite, so that a query which sees no key gets weights e^-inf = 0, not NaN.
    m = a.new_full((*a.shape[:2], 1), torch.finfo(a.dtype).min)
    total, mean, mu = torch.zeros_like(m), torch.zeros_like(m), torch.zeros_like(m)
    moved = a.new_zeros(*a.shape[:2], parts.v.shape[-1])
    for keys in _slices(pattern.end(rows, parts.b.shape[1]), columns):
        scores = pattern.apply(torch.bmm(a, parts.b[group, keys].mT), group, rows, keys)
        before, m = m, torch.maximum(m, scores.amax(-1, keepdim=True))
        weights, fade = scores.sub_(m).exp_(), (before - m).exp_()
        total = total.mul_(fade).add_(weights.sum(-1, keepdim=True))
        moved = moved.mul_(fade)
        if parts.dv is not None:
            moved.baddbmm_(weights, parts.dv[group, keys])
        if left is None or parts.right is None:
            continue
        slope = torch.bmm(left, parts.right[group, keys].mT)
        if keys.start == 0:
            mean = (weights * slope).sum(-1, keepdim=True) / _not_zero(total)
        slope.sub_(mean).mul_(weights)
        mu = mu.mul_(fade).add_(slope.sum(-1, keepdim=True))
        moved.baddbmm_(slope, parts.v[group, keys])
    return moved.addcmul_(mu, y.to(mu.dtype), value=-1).div_(_not_zero(total))


def _not_zero(total: Tensor) -> Tensor:
    """The sum of the weights; 1 for a query that sees no key, whose output and tangent are zero."""
    return torch.where(total == 0, 1, total)
