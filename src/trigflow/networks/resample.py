"""Down- and upsampling by 2, as in the U-Nets of EDM and EDM2: means of 2 x 2 pixels, and each pixel repeated."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from trigflow.networks.layers import AVG_POOLS

Resample = Literal["keep", "halve", "double"]


def resampled(x: Tensor, how: Resample) -> Tensor:
    """(B, C, *size) with each size kept, halved or doubled; a size that is halved must be even."""
    if how == "halve":
        return AVG_POOLS[x.ndim - 2](x, 2)
    return F.interpolate(x, scale_factor=2.0) if how == "double" else x
