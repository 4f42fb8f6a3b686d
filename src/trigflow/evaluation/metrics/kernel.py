"""KID between two sets of feature vectors: the squared maximum mean discrepancy with a cubic polynomial kernel.

    k(x, y) = (x . y / D + 1)^3
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

The unbiased estimator of Binkowski et al., "Demystifying MMD GANs", 2018 (arXiv 1801.01401), in any features;
published values are in those of Inception. Unlike the Frechet distance it has expectation 0 for two sets from one
distribution, and may be slightly negative. All pairs are used, where others average over random subsets of 1,000: the
same expectation, a smaller variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, SampleSet
from trigflow.system.errors import UserError

_BLOCK = 2048  # rows of the kernel matrix that are in memory at once


def kernel_distance(features_a: Tensor, features_b: Tensor) -> float:
    """KID between two sets of feature vectors, (N, D) and (M, D); computed in float64 on the CPU.

    Raises:
        UserError: fewer than two vectors in a set, different numbers of features.
    """
    a, b = (features.detach().to("cpu", torch.float64) for features in (features_a, features_b))
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise UserError(
            f"KID needs two vectors or more on each side, of one length, not {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    return _mean_kernel(a, a, same=True) + _mean_kernel(b, b, same=True) - 2 * _mean_kernel(a, b, same=False)


def _mean_kernel(a: Tensor, b: Tensor, same: bool) -> float:
    """Mean of k over all pairs, without the pairs of a vector with itself if both sets are the same."""
    dimension = a.shape[1]
    blocks = (a[first : first + _BLOCK] for first in range(0, len(a), _BLOCK))
    total = sum((block @ b.T / dimension + 1).pow(3).sum().item() for block in blocks)
    if not same:
        return total / (len(a) * len(b))
    own = float((a.square().sum(1) / dimension + 1).pow(3).sum())
    return (total - own) / (len(a) * (len(a) - 1))


def _compute(real: SampleSet, own: SampleSet) -> float:
    """KID: squared maximum mean discrepancy of the features, cubic polynomial kernel, unbiased."""
    return kernel_distance(real.vectors, own.vectors)


KID = Metric(
    "KID",
    "{:.2g}",
    _compute,
    "KID (unbiased, cubic polynomial kernel, Binkowski et al. 2018, in these features) has no such bias: its"
    " expectation is 0 for equal distributions.",
)
