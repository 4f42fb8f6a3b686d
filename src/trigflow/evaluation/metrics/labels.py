"""Label accuracy: how often a classifier sees the label that was asked for."""

from __future__ import annotations

from torch import Tensor

from trigflow.evaluation.metrics.features import Features, class_logits, extract_features
from trigflow.evaluation.metrics.metric import Metric, SampleSet


def label_agreement(features: Features, samples: Tensor, labels: Tensor) -> float | None:
    """Share in [0, 1] of samples whose top class is the requested label; None for features without such classes."""
    logits = class_logits(features, extract_features(features, samples))
    if logits is None or not features.checks_labels:
        return None
    return _share(logits, labels)


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels.cpu()).double().mean())


def _compute(real: SampleSet, own: SampleSet) -> float | None:
    """Share of the samples whose top class is the requested label."""
    if own.logits is None or own.labels is None or not own.features.checks_labels:
        return None
    return _share(own.logits, own.labels)


LABEL_ACCURACY = Metric("label accuracy", "{:.1%}", _compute, alone=True)
