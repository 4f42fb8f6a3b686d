"""The form of the Inception score: how sure a classifier is of each sample, and how many classes it sees in all.

    exp(mean_x KL(p(y | x) || p(y)))

Salimans et al., "Improved techniques for training GANs", 2016, arXiv 1606.03498. It is called Inception score only with
the standard Inception network. It never looks at the real data: read it beside the real data's own.
"""

from __future__ import annotations

import math

from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, SampleSet
from trigflow.system.errors import UserError


def classifier_score(logits: Tensor) -> float:
    """Score in 1..K of logits (N, K), over all N at once; computed in float64.

    1: the same answer for every sample; K: certain of each sample, and all classes equally often.

    Raises:
        UserError: no logits, or some that are not finite.
    """
    if logits.ndim != 2 or logits.numel() == 0 or not logits.isfinite().all():
        raise UserError(f"a classifier score needs finite logits (N, K), got shape {tuple(logits.shape)}")
    log_p = logits.detach().cpu().double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - math.log(len(log_p))
    divergence = (log_p.exp() * (log_p - log_mean)).sum(1)
    return math.exp(max(float(divergence.mean()), 0.0))


def _score(own: SampleSet, of_inception: bool) -> float | None:
    if own.logits is None or own.features.is_inception != of_inception:
        return None
    return classifier_score(own.logits)


def _inception(real: SampleSet, own: SampleSet) -> float | None:
    """exp(mean KL(p(y|x) || p(y))) by the standard Inception network."""
    return _score(own, of_inception=True)


def _classifier(real: SampleSet, own: SampleSet) -> float | None:
    """exp(mean KL(p(y|x) || p(y))) by any other classifier."""
    return _score(own, of_inception=False)


_FACT = (
    "Inception or classifier score: exp(mean KL(p(y|x) || p(y))), over all samples at once; larger is more confident"
    " and more varied. In the row of halves it is that of all real data."
)
INCEPTION_SCORE = Metric("Inception score", "{:.2f}", _inception, _FACT, alone=True, of_real=True)
CLASSIFIER_SCORE = Metric("classifier score", "{:.2f}", _classifier, _FACT, alone=True, of_real=True)
