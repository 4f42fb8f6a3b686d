"""Scores of samples: Frechet distances on pluggable features, label agreement, the error of a flow map."""

from trigflow.metrics.features import FEATURES, Features, extract_features, label_agreement, load_features
from trigflow.metrics.flow_map import FlowMapError, sliced_wasserstein
from trigflow.metrics.frechet import frechet_distance, halves_distance, moments

__all__ = [
    "FEATURES",
    "Features",
    "FlowMapError",
    "extract_features",
    "frechet_distance",
    "halves_distance",
    "label_agreement",
    "load_features",
    "moments",
    "sliced_wasserstein",
]
