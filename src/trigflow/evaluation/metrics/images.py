"""Stored images as the published networks take them: three channels, one size, their mean and standard deviation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trigflow.system.errors import UserError

# Of ImageNet's red, green and blue in 0..1.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def rgb(samples: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) uint8 images -> (B, 3, H, W) float32 in 0..255; grey is repeated.

    Raises:
        UserError: no such images.
    """
    if samples.dtype != torch.uint8 or samples.ndim != 4 or samples.shape[1] not in (1, 3):
        found = f"{samples.dtype} of shape {tuple(samples.shape[1:])}"
        raise UserError(f"these features are for uint8 images (1 or 3, H, W), not {found}: use pixels")
    return samples.float().expand(-1, 3, -1, -1)


def imagenet_standard(images: Tensor) -> Tensor:
    """(B, 3, H, W) in 0..255 -> standardised by ImageNet's mean and standard deviation."""
    mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (images / 255 - mean) / std


def resized_bicubic(images: Tensor, size: int) -> Tensor:
    """(B, 3, H, W) -> (B, 3, size, size), bicubic, smoothed where it shrinks; values may overshoot a little."""
    return functional.interpolate(images, (size, size), mode="bicubic", antialias=True)
