"""The classifier score: its two ends exactly, and a plain sum over all samples and classes."""

from __future__ import annotations

import math

import pytest
import torch

from trigflow.evaluation.metrics import classifier_score
from trigflow.system.errors import UserError


def test_the_same_answer_for_every_sample_scores_one() -> None:
    assert classifier_score(torch.zeros(7, 5)) == pytest.approx(1, rel=1e-12)
    assert classifier_score(torch.randn(1, 5).expand(9, 5)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("classes", [2, 10, 1008])
def test_certain_and_balanced_scores_the_number_of_classes(classes: int) -> None:
    logits = 1000 * torch.eye(classes).repeat(3, 1)
    assert classifier_score(logits) == pytest.approx(classes, rel=1e-12)


def test_certain_of_some_classes_only_scores_their_number() -> None:
    assert classifier_score(1000 * torch.eye(10)[[0, 3, 3, 0]]) == pytest.approx(2, rel=1e-12)


def test_equals_the_plain_sum() -> None:
    p = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).double().softmax(1)
    mean = p.mean(0).tolist()
    terms = [[q * math.log(q / m) for q, m in zip(row, mean, strict=True)] for row in p.tolist()]
    expected = math.exp(sum(sum(row) for row in terms) / len(terms))
    assert classifier_score(p.log()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("logits", [torch.zeros(0, 3), torch.zeros(3), torch.full((2, 2), float("nan"))])
def test_mistakes(logits: torch.Tensor) -> None:
    with pytest.raises(UserError, match="finite logits"):
        classifier_score(logits)
