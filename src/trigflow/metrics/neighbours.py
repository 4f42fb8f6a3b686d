"""Precision and recall of samples: how many lie where data lies, and how much of the data they reach.

Kynkaanniemi et al., "Improved precision and recall metric for assessing generative models", 2019, arXiv 1904.06991:
a set covers the union of balls around its vectors,
each as wide as the distance to its k-th nearest neighbour in the set.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.errors import UserError

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


def precision_recall(real: Tensor, samples: Tensor, k: int = NEIGHBOURS) -> PrecisionRecall:
    """Precision and recall of samples (M, D) beside data (N, D); float64 on the CPU.

    They depend on the sizes of the sets: compare at equal ones only.

    Raises:
        UserError: a set of k vectors or fewer, or different numbers of features.
    """
    real, samples = (features.detach().to("cpu", torch.float64) for features in (real, samples))
    if real.shape[1] != samples.shape[1] or min(len(real), len(samples)) <= k:
        raise UserError(
            f"precision and recall need more than {k} vectors on each side, of one length, not "
            f"{tuple(real.shape)} and {tuple(samples.shape)}"
        )
    return PrecisionRecall(_covered(samples, real, k), _covered(real, samples, k))


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """Share of the points that lie in a ball of a centre."""
    radii = torch.cat(
        [_distances(block, centres).kthvalue(k + 1, dim=1).values for block in _blocks(centres)]
    )
    inside = [(_distances(block, centres) <= radii).any(1) for block in _blocks(points)]
    return torch.cat(inside).double().mean().item()


def _blocks(x: Tensor) -> list[Tensor]:
    return [x[first : first + _BLOCK] for first in range(0, len(x), _BLOCK)]


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Exact, so that a vector is at the distance 0 from itself and from a copy.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")
