"""What a metric is, and all that it may look at. METRICS, in the package's `__init__`, is the table of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import wraps
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trigflow.evaluation.metrics.features import Features, class_logits
from trigflow.system.errors import UserError

MOST_PAIRED = 10_000  # vectors of a set for metrics whose cost grows with the square of their number
MOST_POOLED = (
    2**24
)  # numbers of the vectors of data that are kept, where these are more vectors than MOST_PAIRED
Found = TypeVar("Found")


@dataclass(frozen=True)
class Moments:
    """Mean (D,), covariance (D, D), both float64 on the CPU, and the number of vectors they come from."""

    mean: Tensor
    cov: Tensor
    num: int


def moments(features: Tensor) -> Moments:
    """Moments of features (N, D), any float dtype; the covariance is the unbiased one (divided by N - 1).

    Raises:
        UserError: fewer than two vectors, or values that are not finite.
    """
    if features.ndim != 2 or features.shape[0] < 2:
        raise UserError(f"a Frechet distance needs (N >= 2, D) features, got shape {tuple(features.shape)}")
    if not torch.isfinite(features).all():
        raise UserError("the features contain NaN or infinity: the model's samples are broken")
    x = features.detach().to("cpu", torch.float64)
    centred = x - x.mean(0)
    return Moments(x.mean(0), centred.T @ centred / (len(x) - 1), len(x))


@dataclass(frozen=True, eq=False)
class SampleSet:
    """N samples of a model, or real data: what a metric may look at. Tensors are on the CPU, points where they were.

    Attributes:
        features: what made the feature vectors; a metric for some features only asks these.
        moments: of all N feature vectors.
        vectors: (n, D) float32, of which metrics may take all pairs: n is MOST_PAIRED at most, of data in random order.
        logits: (N, K) float32 of all a model's samples; None for features without classes, and for real data.
        labels: (N,) int64, the samples' requested labels or the data's own; None for none.
        points: (N, d), samples that are vectors themselves, as stored; None for images.
        radii: (n,) float64, `neighbours.radii` of the vectors where they were computed before.
        levels: (256,) int64, how often each pixel value occurs in all N images of 8 bits; None for other samples.
        pool: (m, D) float32, of data: as many vectors as are kept, the first of which are `vectors`; None for samples.
        spacing: `nearest.spacing` of the vectors in the pool where it was computed before.
        seed: of the samples, for metrics that draw at random; 0 for data.
        alone: of real data, the metrics that look at it alone, by their names.
    """

    features: Features
    moments: Moments
    vectors: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    points: Tensor | None = None
    radii: Tensor | None = None
    levels: Tensor | None = None
    pool: Tensor | None = None
    spacing: float | None = None
    seed: int = 0
    alone: Mapping[str, float | None] = field(default_factory=dict)


def sample_set(
    features: Features,
    vectors: Tensor,
    points: Tensor | None,
    labels: Tensor | None = None,
    seed: int = 0,
    levels: Tensor | None = None,
) -> SampleSet:
    """A model's samples as metrics see them.

    Args:
        features: of which the vectors are.
        vectors: (N, D) of all samples.
        points: (N, d), the samples as stored where they are vectors themselves; None for images.
        labels: (N,) that were requested.
        seed: of the samples.
        levels: (256,) of all pixel values of images; None for other samples.

    Raises:
        UserError: fewer than two samples, or features that are not finite.
    """
    known, logits = moments(vectors), class_logits(features, vectors)
    paired = vectors[:MOST_PAIRED]
    return SampleSet(features, known, paired, logits, labels, points, levels=levels, seed=seed)


@dataclass(frozen=True)
class Metric:
    """One number of a set of samples beside the real data.

    Args:
        heading: of its column in a report.
        form: how the column shows a number, as "{:.2f}".
        compute: (the real data, the samples or held-out data in their place) -> the number; None where the metric does
            not apply to these features or this data. The first line of its docstring stands in `trigflow list metrics`.
        fact: what a reader of the report must know of the number; "" for nothing.
        alone: whether it looks at the samples alone. Then it is computed once for real data, whose logits are not kept.
        of_real: whether the report gives that of the real data beside it.
    """

    heading: str
    form: str
    compute: Callable[[SampleSet, SampleSet], float | None]
    fact: str = ""
    alone: bool = False
    of_real: bool = False


def once(compute: Callable[[SampleSet, SampleSet], Found]) -> Callable[[SampleSet, SampleSet], Found]:
    """The function, computed once for a pair of sets as long as both exist: for metrics that share their work."""
    known: WeakKeyDictionary[SampleSet, WeakKeyDictionary[SampleSet, Found]] = WeakKeyDictionary()

    @wraps(compute)
    def found(real: SampleSet, own: SampleSet) -> Found:
        beside = known.setdefault(own, WeakKeyDictionary())
        if real not in beside:
            beside[real] = compute(real, own)
        return beside[real]

    return found
