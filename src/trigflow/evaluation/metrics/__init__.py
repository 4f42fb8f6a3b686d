"""Scores of samples in pluggable features: Frechet distance, KID, precision and recall, label accuracy, flow maps."""

from trigflow.core.flow_map import FlowMapError
from trigflow.evaluation.metrics.diversity import classifier_score
from trigflow.evaluation.metrics.features import (
    FEATURES,
    Features,
    extract_features,
    label_agreement,
    load_features,
)
from trigflow.evaluation.metrics.frechet import frechet_distance, halves_distance, moments
from trigflow.evaluation.metrics.kernel import kernel_distance
from trigflow.evaluation.metrics.neighbours import PrecisionRecall, precision_recall
from trigflow.evaluation.metrics.published import PUBLISHED
from trigflow.evaluation.metrics.sliced_wasserstein import sliced_wasserstein

__all__ = [
    "FEATURES",
    "PUBLISHED",
    "Features",
    "FlowMapError",
    "PrecisionRecall",
    "classifier_score",
    "extract_features",
    "frechet_distance",
    "halves_distance",
    "kernel_distance",
    "label_agreement",
    "load_features",
    "moments",
    "precision_recall",
    "sliced_wasserstein",
]
