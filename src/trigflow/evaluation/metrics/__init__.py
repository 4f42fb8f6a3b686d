"""Scores of samples in pluggable features: the table METRICS of them, and what they compute."""

from trigflow.core.flow_map import FlowMapError
from trigflow.evaluation.metrics.diversity import CLASSIFIER_SCORE, INCEPTION_SCORE, classifier_score
from trigflow.evaluation.metrics.features import FEATURES, Features, extract_features, load_features
from trigflow.evaluation.metrics.frechet import FRECHET_DISTANCE, frechet_distance, halves_distance
from trigflow.evaluation.metrics.haze import HAZE
from trigflow.evaluation.metrics.kernel import KID, kernel_distance
from trigflow.evaluation.metrics.labels import LABEL_ACCURACY, label_agreement
from trigflow.evaluation.metrics.metric import Metric, SampleSet, moments
from trigflow.evaluation.metrics.nearest import NEAREST
from trigflow.evaluation.metrics.neighbours import PRECISION, RECALL, PrecisionRecall, precision_recall
from trigflow.evaluation.metrics.published import PUBLISHED
from trigflow.evaluation.metrics.sliced_wasserstein import SLICED_WASSERSTEIN, sliced_wasserstein

SCORE = "fd"  # the metric that models are compared by: the report gives its range and ratios as well
METRICS: dict[str, Metric] = {
    SCORE: FRECHET_DISTANCE,
    "kernel_distance": KID,
    "precision": PRECISION,
    "recall": RECALL,
    "nearest": NEAREST,
    "inception_score": INCEPTION_SCORE,
    "classifier_score": CLASSIFIER_SCORE,
    "label_agreement": LABEL_ACCURACY,
    "sliced_wasserstein": SLICED_WASSERSTEIN,
    "haze": HAZE,
}
"""By their keys in report.json, in the order of the report's columns."""


def measured(name: str, real: SampleSet, own: SampleSet) -> float | None:
    """The metric of this name, unless it was computed of `own` alone before; None where it does not apply."""
    value = own.alone[name] if name in own.alone else METRICS[name].compute(real, own)
    return None if value is None else float(value)


__all__ = [
    "FEATURES",
    "METRICS",
    "PUBLISHED",
    "SCORE",
    "Features",
    "FlowMapError",
    "Metric",
    "PrecisionRecall",
    "SampleSet",
    "classifier_score",
    "extract_features",
    "frechet_distance",
    "halves_distance",
    "kernel_distance",
    "label_agreement",
    "load_features",
    "measured",
    "moments",
    "precision_recall",
    "sliced_wasserstein",
]
