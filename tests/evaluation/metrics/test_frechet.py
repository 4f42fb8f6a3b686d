"""The Frechet distance against closed forms and against SciPy's matrix square root."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from trigflow.evaluation.metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_distance_of_moments,
    halves_distance,
    moments,
)
from trigflow.system.errors import UserError


def random_features(n: int, d: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix + seed


def scipy_distance(a: Tensor, b: Tensor) -> float:
    x, y = a.numpy(), b.numpy()
    s_1, s_2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = scipy.linalg.sqrtm(s_1 @ s_2).real
    return float(np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(s_1 + s_2 - 2 * root))


@pytest.mark.parametrize("d", [1, 2, 8, 32])
def test_equals_scipys_square_root(d: int) -> None:
    a, b = random_features(400, d, 1), random_features(300, d, 2)
    expected = scipy_distance(a, b) if d > 1 else float((a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("d", [64, 200])
def test_equals_scipys_square_root_in_many_features(d: int) -> None:
    """Well-conditioned: the condition number of both covariances is below 100."""
    generator = torch.Generator().manual_seed(d)
    a, b = (torch.randn(20 * d, d, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a * torch.linspace(0.5, 2, d), b.roll(1, 1) * torch.linspace(1.5, 0.6, d) + 0.1
    assert frechet_distance(a, b) == pytest.approx(scipy_distance(a, b), rel=1e-6)


@pytest.mark.parametrize(("n", "m"), [(5, 5), (5, 200), (40, 30)])
def test_few_vectors_in_many_features_give_a_plain_number(n: int, m: int) -> None:
    """The root of such a product may come out complex; this distance is real, finite, not negative, symmetric."""
    a, b = random_features(n, 64, 1), random_features(m, 64, 2)
    distance = frechet_distance(a, b)
    assert isinstance(distance, float) and np.isfinite(distance) and distance >= 0
    assert frechet_distance(b, a) == pytest.approx(distance, rel=1e-9)


def test_closed_form_of_commuting_covariances() -> None:
    """Diagonal covariances: FD = |mu_1 - mu_2|^2 + sum of (sd_1 - sd_2)^2."""
    sd_1, sd_2 = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([3.0, 0.5, 4.0]).double()
    a = Moments(torch.zeros(3).double(), sd_1.square().diag(), 10)
    b = Moments(torch.ones(3).double(), sd_2.square().diag(), 10)
    assert frechet_distance_of_moments(a, b) == pytest.approx(
        3 + float((sd_1 - sd_2).square().sum()), rel=1e-12
    )


@pytest.mark.parametrize("n", [2, 5, 20])
def test_singular_covariances_are_no_trouble(n: int) -> None:
    """Fewer vectors than features: the distance of a set to itself is 0, to a shifted copy the shift's square."""
    a = random_features(n, 64, 3)
    scale = float(moments(a).cov.trace())
    assert frechet_distance(a, a) <= 1e-9 * scale
    assert frechet_distance(a, a + 1) == pytest.approx(64, abs=1e-9 * scale)


def test_singular_covariances_of_different_sets_agree_with_the_padded_problem() -> None:
    """Adding features that are zero in both sets changes nothing."""
    a, b = random_features(100, 6, 1), random_features(100, 6, 2)
    padded = [torch.cat([x, torch.zeros(100, 5).double()], 1) for x in (a, b)]
    assert frechet_distance(*padded) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_symmetric_and_invariant_under_rotation() -> None:
    a, b = random_features(100, 7, 1), random_features(80, 7, 2)
    q, _ = torch.linalg.qr(random_features(7, 7, 5))
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-10)
    assert frechet_distance(a @ q, b @ q) == pytest.approx(frechet_distance(a, b), rel=1e-10)


def test_the_bias_falls_as_one_over_n() -> None:
    x = torch.randn(16_000, 8, generator=torch.Generator().manual_seed(0))
    few = np.mean([frechet_distance(*x[500 * k : 500 * k + 500].split(250)) for k in range(8)])
    many = np.mean([frechet_distance(*x[2000 * k : 2000 * k + 2000].split(1000)) for k in range(8)])
    assert few / many == pytest.approx(4, rel=0.25)


def test_halves_are_repeatable_and_small() -> None:
    x = random_features(1000, 4, 0)
    distances = halves_distance(x, splits=3)
    assert distances == halves_distance(x, splits=3)
    assert len(set(distances)) == 3
    assert max(distances) < 0.05 * float(moments(x).cov.trace())


@pytest.mark.parametrize(
    ("a", "b", "complaint"),
    [
        (torch.zeros(1, 3), torch.zeros(5, 3), "N >= 2"),
        (torch.zeros(5), torch.zeros(5, 3), "N >= 2"),
        (torch.zeros(5, 2), torch.zeros(5, 3), "same features"),
        (torch.full((5, 3), float("nan")), torch.zeros(5, 3), "NaN"),
    ],
)
def test_mistakes(a: Tensor, b: Tensor, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        frechet_distance(a, b)
