"""The form of the Inception score: how sure a classifier is of each sample, and how many classes it sees in all.

    exp(mean_x KL(p(y | x) || p(y)))

Salimans et al., "Improved techniques for training GANs", 2016, arXiv 1606.03498. It is called Inception score only with
the standard Inception network. It never looks at the real data: read it beside the real data's own.
"""

from __future__ import annotations

import math

from torch import Tensor

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
