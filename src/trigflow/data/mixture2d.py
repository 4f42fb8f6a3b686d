"""Samples of a Gaussian mixture in the plane, whose velocity and flow map are known exactly."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trigflow.core import oracles
from trigflow.data.codecs import IdentityCodec
from trigflow.data.dataset import Dataset


def mixture2d(n: Annotated[int, Field(ge=1)] = 50_000, seed: int = 0, sigma_data: float = 0.5) -> Dataset:
    """Eight Gaussians of standard deviation 0.1 on the unit circle, scaled to sigma_data: n points (N, 2).

    Args:
        n: number of points.
        seed: of the points.
        sigma_data: standard deviation of x_0 in each coordinate.
    """
    oracle = oracles.mixture2d(sigma_data)
    return Dataset("mixture2d", oracle.sample(n, seed), None, 0, IdentityCodec(sigma_data), oracle)
