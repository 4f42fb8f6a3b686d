"""Samples of a Gaussian mixture in the plane, whose velocity and flow map are known exactly."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from pydantic import Field

from trigflow.codecs import IdentityCodec
from trigflow.data.dataset import Dataset
from trigflow.randomness import SampleRandom


def mixture2d(
    n: Annotated[int, Field(ge=1)] = 50_000, seed: int = 0, sigma_data: float = 0.5
) -> Dataset:
    """Eight Gaussians of standard deviation 0.1 on the unit circle, scaled to sigma_data: n points (N, 2).

    Args:
        n: number of points.
        seed: of the points.
        sigma_data: standard deviation of x_0 in each coordinate.
    """
    random = SampleRandom(seed, torch.arange(n))
    angle = 2 * math.pi * (random.uniform("component", dtype=torch.float64) * 8).floor() / 8
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    points = centres + 0.1 * random.normal("point", (2,), torch.float64)
    scale = sigma_data / math.sqrt(0.5 + 0.1**2)  # the variance of a coordinate is 1/2 (circle) + 0.1^2
    return Dataset("mixture2d", (scale * points).float(), None, 0, IdentityCodec(sigma_data))
