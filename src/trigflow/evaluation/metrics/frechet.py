"""Frechet distance between two sets of feature vectors.

    FD = |mu_1 - mu_2|^2 + tr(S_1) + tr(S_2) - 2 tr((S_1^1/2 S_2 S_1^1/2)^1/2)

the squared 2-Wasserstein distance between the normal distributions that have the sets' means and covariances (Dowson
and Landau, 1982). With the standard Inception features it is the FID (Heusel et al., "GANs trained by a two
time-scale update rule", 2017); with any other features it is called FD-<features> here.

Finite samples bias it upwards: two sets of n vectors from one distribution differ by about c / n, and c grows with the
number of features. So compare distances only at the same n, and read each beside that of two halves of the real data.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, Moments, SampleSet, moments
from trigflow.system.devices import generator_seed
from trigflow.system.errors import UserError


def _square_root(cov: Tensor) -> Tensor:
    """Symmetric root of a positive semi-definite matrix; rounding may push zero eigenvalues below zero."""
    values, vectors = torch.linalg.eigh(cov)
    root: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    return root


def frechet_distance_of_moments(a: Moments, b: Moments) -> float:
    """FD >= 0 between two sets given by their moments.

    The eigenvalues of S_1^1/2 S_2 S_1^1/2 are the squared singular values of S_1^1/2 S_2^1/2, so the last trace is the
    sum of these singular values. Not squaring keeps singular covariances (fewer vectors than features) exact to
    rounding.

    Raises:
        UserError: different numbers of features.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"cannot compare {a.mean.numel()} features with {b.mean.numel()}: use the same features"
        )
    cross = torch.linalg.svdvals(_square_root(a.cov) @ _square_root(b.cov)).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return max(float(distance), 0.0)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """FD >= 0 between two sets of feature vectors, (N, D) and (M, D); computed in float64.

    Raises:
        UserError: fewer than two vectors in a set, values that are not finite, different numbers of features.
    """
    return frechet_distance_of_moments(moments(features_a), moments(features_b))


def halves_distance(features: Tensor, splits: int = 5, seed: int = 0) -> list[float]:
    """FD between two random halves of one set (N, D), for several random splits: the noise floor of a score.

    Each half has N // 2 vectors, so its bias is larger than that of a score with more samples.
    """
    generator = torch.Generator().manual_seed(generator_seed(seed))
    orders = [torch.randperm(len(features), generator=generator) for _ in range(splits)]
    half = len(features) // 2
    return [frechet_distance(features[order[:half]], features[order[half : 2 * half]]) for order in orders]


def _compute(real: SampleSet, own: SampleSet) -> float:
    """Squared 2-Wasserstein distance between normal distributions with the moments of the features."""
    return frechet_distance_of_moments(real.moments, own.moments)


FRECHET_DISTANCE = Metric("FD", "{:.4g}", _compute)
