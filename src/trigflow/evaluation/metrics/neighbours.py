"""Precision and recall of samples: how many lie where data lies, and how much of the data they reach.

Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models", 2019, arXiv 1904.06991:
a set covers the union of balls around its vectors,
each as wide as the distance to its k-th nearest neighbour in the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import MOST_PAIRED, Metric, SampleSet, once
from trigflow.system.errors import UserError

NEIGHBOURS = 3
_BLOCK = 1024  # rows of the distance matrix that are in memory at once


@dataclass(frozen=True)
class PrecisionRecall:
    """Both are shares in 0..1.

    Attributes:
        precision: of the samples that lie in the data's balls.
        recall: of the data that lies in the samples' balls.
    """

    precision: float
    recall: float


def radii(features: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """Distance of each vector (N, D) to its k-th nearest neighbour in the set: (N,) float64 on the CPU.

    Raises:
        UserError: k vectors or fewer.
    """
    x = features.detach().to("cpu", torch.float64)
    if len(x) <= k:
        raise UserError(f"the distance to neighbour {k} needs more than {k} vectors, not {tuple(x.shape)}")
    # The nearest of all is the vector itself.
    return torch.cat([_distances(block, x).kthvalue(k + 1, dim=1).values for block in _blocks(x)])


def precision_recall(
    real: Tensor, samples: Tensor, k: int = NEIGHBOURS, real_radii: Tensor | None = None
) -> PrecisionRecall:
    """Precision and recall of samples (M, D) beside data (N, D); float64 on the CPU.

    They depend on the sizes of the sets: compare at equal ones only.

    Args:
        real, samples: feature vectors.
        k: which neighbour's distance is the radius of a ball.
        real_radii: `radii(real, k)`, (N,), where they are known already.

    Raises:
        UserError: a set of k vectors or fewer, or different numbers of features.
    """
    real, samples = (features.detach().to("cpu", torch.float64) for features in (real, samples))
    if real.shape[1] != samples.shape[1] or min(len(real), len(samples)) <= k:
        raise UserError(
            f"precision and recall need more than {k} vectors on each side, of one length, not "
            f"{tuple(real.shape)} and {tuple(samples.shape)}"
        )
    real_radii, sample_radii = radii(real, k) if real_radii is None else real_radii, radii(samples, k)
    in_data = torch.zeros(len(samples), dtype=torch.bool)
    reached = []
    for block, balls in zip(_blocks(real), _blocks(real_radii), strict=True):
        distances = _distances(block, samples)
        in_data |= (distances <= balls[:, None]).any(0)
        reached.append((distances <= sample_radii).any(1))
    return PrecisionRecall(_share(in_data), _share(torch.cat(reached)))


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def _blocks(x: Tensor) -> list[Tensor]:
    return [x[first : first + _BLOCK] for first in range(0, len(x), _BLOCK)]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Exact, so that a vector is at the distance 0 from itself and from a copy.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


@once
def _both(real: SampleSet, own: SampleSet) -> PrecisionRecall | None:
    if min(len(real.vectors), len(own.vectors)) <= NEIGHBOURS:
        return None
    return precision_recall(real.vectors, own.vectors, real_radii=real.radii)


def _precision(real: SampleSet, own: SampleSet) -> float | None:
    """Share of the samples within the support of the data."""
    both = _both(real, own)
    return None if both is None else both.precision


def _recall(real: SampleSet, own: SampleSet) -> float | None:
    """Share of the data within the support of the samples."""
    both = _both(real, own)
    return None if both is None else both.recall


_FACT = (
    "Precision: share of the samples within the support of the data; recall: share of the data within the support of"
    f" the samples (at most {MOST_PAIRED:,} on each side)."
)
PRECISION = Metric("precision", "{:.2f}", _precision, _FACT)
RECALL = Metric("recall", "{:.2f}", _recall, _FACT)
