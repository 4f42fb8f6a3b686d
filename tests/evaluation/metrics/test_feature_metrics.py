"""Kernel distance, precision and recall beside closed forms and plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from trigflow.evaluation.metrics import kernel_distance, precision_recall
from trigflow.evaluation.metrics.neighbours import radii
from trigflow.system.errors import UserError


def normal(n: int, d: int = 5, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * torch.randn(n, d, generator=generator, dtype=torch.float64)


def test_kernel_distance_is_the_sum_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trigflow.evaluation.metrics.kernel._BLOCK", 4)
    a, b = normal(9).numpy(), normal(7, seed=1, shift=0.3).numpy()

    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        pairs = [
            (x[i] @ y[j] / 5 + 1) ** 3 for i in range(len(x)) for j in range(len(y)) if not (same and i == j)
        ]
        return float(np.mean(pairs))

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    found = kernel_distance(torch.from_numpy(a), torch.from_numpy(b))
    assert found == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_point_masses_is_known() -> None:
    """Two points x, y: k(x, x) + k(y, y) - 2 k(x, y)."""
    x, y = torch.full((4, 2), 1.0), torch.full((3, 2), 2.0)
    assert kernel_distance(x, y) == pytest.approx(2**3 + 5**3 - 2 * 3**3)


def test_kernel_distance_is_unbiased() -> None:
    distances = [kernel_distance(normal(40, seed=2 * s), normal(60, seed=2 * s + 1)) for s in range(200)]
    mean, error = np.mean(distances), np.std(distances) / np.sqrt(len(distances))
    assert abs(mean) < 4 * error and min(distances) < 0
    assert kernel_distance(normal(400), normal(400, seed=1, shift=0.5)) > 10 * np.std(distances)


def test_precision_and_recall_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trigflow.evaluation.metrics.neighbours._BLOCK", 7)
    real, samples = normal(30, 2), normal(25, 2, seed=1, shift=1.5)

    def covered(points: Tensor, centres: Tensor) -> float:
        radii = [sorted(float((c - o).norm()) for o in centres)[3] for c in centres]
        hits = [any(float((p - c).norm()) <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        return sum(hits) / len(hits)

    found = precision_recall(real, samples)
    assert precision_recall(real, samples, real_radii=radii(real)) == found
    assert found.precision == pytest.approx(covered(samples, real))
    assert found.recall == pytest.approx(covered(real, samples))
    assert 0.1 < found.precision < 1 and 0.1 < found.recall < 1


def test_precision_and_recall_tell_narrow_from_wide() -> None:
    real = normal(500, 2)
    narrow, wide = (
        precision_recall(real, normal(500, 2, 1, scale=0.2)),
        precision_recall(real, normal(500, 2, 1, scale=5.0)),
    )
    assert narrow.precision > 0.95 and narrow.recall < 0.5
    assert wide.precision < 0.5 and wide.recall > 0.9
    copy = precision_recall(real, real.clone())
    assert (copy.precision, copy.recall) == (1.0, 1.0)
    apart = precision_recall(real, real + 100)
    assert (apart.precision, apart.recall) == (0.0, 0.0)


@pytest.mark.parametrize("metric", [kernel_distance, precision_recall])
@pytest.mark.parametrize("shape", [(1, 5), (20, 4)])
def test_sets_that_cannot_be_compared_are_refused(metric, shape: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match="of one length"):
        metric(normal(20), normal(*shape))
