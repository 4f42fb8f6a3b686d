"""Scores of samples on pluggable features (Frechet, kernel distance, precision and recall, labels), of flow maps."""

from trigflow.core.flow_map import FlowMapError
from trigflow.metrics.diversity import classifier_score
from trigflow.metrics.features import FEATURES, Features, extract_features, label_agreement, load_features
from trigflow.metrics.frechet import frechet_distance, halves_distance, moments
from trigflow.metrics.kernel import kernel_distance
from trigflow.metrics.neighbours import PrecisionRecall, precision_recall
from trigflow.metrics.published import PUBLISHED
from trigflow.metrics.sliced_wasserstein import sliced_wasserstein

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
