"""Sliced Wasserstein distance of points."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, SampleSet
from trigflow.system.devices import generator_seed
from trigflow.system.errors import UserError


def sliced_wasserstein(a: Tensor, b: Tensor, projections: int = 256, seed: int = 0) -> float:
    """Sliced 2-Wasserstein distance (mean over directions of W_2^2)^(1/2) (Bonneel et al., 2015).

    On a line the optimal transport pairs sorted points, so W_2^2 is the mean square of their differences.

    Args:
        a, b: points (N, ...), as many of both; computed in float64.
        projections: number of random directions.
        seed: of the directions.

    Raises:
        UserError: sets of different sizes.
    """
    if a.shape != b.shape or len(a) == 0:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(f"a sliced Wasserstein distance compares as many points of one shape, got {shapes}")
    x, y = a.flatten(1).cpu().double(), b.flatten(1).cpu().double()
    direction = torch.randn(
        projections,
        x.shape[1],
        generator=torch.Generator().manual_seed(generator_seed(seed)),
        dtype=torch.float64,
    )
    direction = direction / direction.norm(dim=1, keepdim=True)
    gap = (x @ direction.T).sort(0).values - (y @ direction.T).sort(0).values
    return math.sqrt(float(gap.square().mean()))


def _compute(real: SampleSet, own: SampleSet) -> float | None:
    """Sliced 2-Wasserstein distance of samples that are vectors to as many of the data."""
    if real.points is None or own.points is None:
        return None
    order = torch.randperm(
        len(real.points), generator=torch.Generator().manual_seed(generator_seed(own.seed))
    )
    drawn = real.points[order[: len(own.points)]]  # fewer than the samples, where there is less data
    return sliced_wasserstein(own.points[: len(drawn)], drawn, seed=own.seed)


SLICED_WASSERSTEIN = Metric("sliced W2", "{:.4g}", _compute)
