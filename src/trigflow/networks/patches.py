"""Patches of an image as channels, and back."""

from __future__ import annotations

from torch import Tensor


def space_to_depth(x: Tensor, patch: int) -> Tensor:
    """(B, C, *size) -> (B, C * patch^dims, *size / patch): the values of each patch become channels."""
    dims, (batch, channels) = x.ndim - 2, x.shape[:2]
    split = [edge for size in x.shape[2:] for edge in (size // patch, patch)]
    order = [0, 1, *(3 + 2 * axis for axis in range(dims)), *(2 + 2 * axis for axis in range(dims))]
    small = [size // patch for size in x.shape[2:]]
    return x.reshape(batch, channels, *split).permute(order).reshape(batch, channels * patch**dims, *small)


def depth_to_space(x: Tensor, patch: int) -> Tensor:
    """(B, C * patch^dims, *size) -> (B, C, *size * patch): the inverse of `space_to_depth`."""
    dims, (batch, channels) = x.ndim - 2, x.shape[:2]
    channels //= patch**dims
    order = [0, 1, *(place for axis in range(dims) for place in (2 + dims + axis, 2 + axis))]
    large = [size * patch for size in x.shape[2:]]
    return (
        x.reshape(batch, channels, *(patch,) * dims, *x.shape[2:])
        .permute(order)
        .reshape(batch, channels, *large)
    )
