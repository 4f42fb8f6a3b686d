"""The nearest vectors of the data: samples that copy the data lie closer to it than new ones do.

    median over samples of |x - nearest data|  /  median over the data of |x - nearest other data|

1 for new samples of the data's distribution, 0 for copies. Held-out data gives what a perfect model would get.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, SampleSet

_NUMBERS = 2**24  # of the distance matrix that are in memory at once


@dataclass(frozen=True)
class Nearest:
    """For each of N vectors: the row of the nearest one, (N,) int64, and the distance to it, (N,) float64."""

    rows: Tensor
    distances: Tensor


def nearest(vectors: Tensor, among: Tensor, others: bool = False) -> Nearest:
    """The nearest of a set of vectors (M, D) to each of others (N, D); float64 on the CPU.

    Args:
        vectors: for which they are looked up.
        among: the set.
        others: the vectors belong to the set: each one's nearest is another one. Then M is 2 or more.
    """
    x, y = (some.detach().to("cpu", torch.float64) for some in (vectors, among))
    half_squares = y.square().sum(1) / 2
    rows = []
    for block in torch.split(x, max(1, _NUMBERS // len(y))):
        # |x - y|^2 / 2 without |x|^2 / 2, which is the same for all y.
        closest = (half_squares - block @ y.T).topk(1 + others, largest=False).indices
        rows.append(closest[:, -1])
    found = torch.cat(rows)
    return Nearest(found, (x - y[found]).norm(dim=1))  # exact: 0 for a copy


def spacing(vectors: Tensor, among: Tensor) -> float:
    """Median distance of vectors of a set to their nearest others in it."""
    return float(nearest(vectors, among, others=True).distances.median())


def _compute(real: SampleSet, own: SampleSet) -> float | None:
    """Median distance of the samples to their nearest data, over that of the data to its nearest others."""
    pool = real.vectors if real.pool is None else real.pool
    apart = spacing(real.vectors, pool) if real.spacing is None else real.spacing
    return None if apart == 0 else float(nearest(own.vectors, pool).distances.median()) / apart


NEAREST = Metric(
    "nearest data",
    "{:.2f}",
    _compute,
    "Nearest data: median distance of the samples to their nearest vectors of the data, over that of the data's own"
    " vectors to their nearest others: 1 for new samples of the same distribution, 0 for copies of the data.",
)
