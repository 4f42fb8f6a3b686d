"""Classifier-free guidance and autoguidance: their formulas, their cost, their mistakes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from trigflow.core.guidance import autoguided, guided
from trigflow.core.samplers import CountNFE, sample_heun
from trigflow.system.errors import UserError


def labelled(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """A velocity that tells its label, three classes and the null label 3."""
    return x_t + labels[:, None] * torch.cos(t)[:, None]


X = torch.arange(6, dtype=torch.float64).reshape(3, 2)
T = torch.tensor([0.1, 0.7, 1.5], dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, torch.tensor([1.0, 1.5, 2.0])])
def test_guidance_extrapolates_from_the_null_label(scale: float | Tensor) -> None:
    v = guided(labelled, scale, null_label=3)(X, T, labels=LABELS)
    label = 3 + scale * (LABELS - 3)
    torch.testing.assert_close(v, X + label[:, None] * torch.cos(T)[:, None], rtol=0, atol=1e-12)


def weaker(x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """Another velocity that tells its label."""
    return 0.5 * labelled(x_t, t, labels) - torch.sin(t)[:, None]


def test_a_scale_of_each_sample_is_that_scale_for_all() -> None:
    scales = torch.tensor([1.0, 1.5, 0.0], dtype=torch.float64)
    for velocity in (lambda s: guided(labelled, s, null_label=3), lambda s: autoguided(labelled, weaker, s)):
        mixed = velocity(scales)(X, T, labels=LABELS)
        each = torch.stack([velocity(s)(X, T, labels=LABELS)[k] for k, s in enumerate(scales.tolist())])
        torch.testing.assert_close(mixed, each, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, torch.tensor([1.0, 1.5, 2.0])])
def test_autoguidance_extrapolates_from_the_weaker_model(scale: float | Tensor) -> None:
    v = autoguided(labelled, weaker, scale)(X, T, labels=LABELS)
    weak, strong = weaker(X, T, LABELS), labelled(X, T, LABELS)
    column = scale[:, None] if isinstance(scale, Tensor) else scale
    torch.testing.assert_close(v, weak + column * (strong - weak), rtol=0, atol=1e-12)


def test_autoguidance_costs_an_evaluation_of_each() -> None:
    for scale, evaluations in ((1.0, 1), (2.0, 2)):
        count = CountNFE(labelled)
        velocity = autoguided(count, count.with_guide(weaker), scale)
        velocity(X, T, labels=LABELS)
        assert count.nfe == evaluations
    assert autoguided(labelled, weaker, 1) is labelled
    with pytest.raises(UserError, match="finite"):
        autoguided(labelled, weaker, math.inf)


def test_a_scale_of_one_is_no_guidance_and_one_evaluation() -> None:
    assert guided(labelled, 1.0, null_label=3) is labelled
    assert guided(labelled, 1, null_label=0) is labelled, "an unconditional network needs no guidance"


@pytest.mark.parametrize(("scale", "evaluations"), [(1.0, 1), (1.5, 2)])
def test_a_guided_step_counts_two(scale: float, evaluations: int) -> None:
    count = CountNFE(labelled)
    velocity = guided(count, scale, null_label=3)
    sample_heun(lambda x, t: velocity(x, t, labels=LABELS), X, [1.5, 1.0, 0.5, 0.0])
    assert count.nfe == 5 * evaluations


def test_the_dtype_is_that_of_the_sample() -> None:
    assert (
        guided(labelled, torch.tensor([2.0] * 3), 3)(X.bfloat16(), T, labels=LABELS).dtype == torch.bfloat16
    )


@pytest.mark.parametrize("scale", [2.0, torch.tensor([2.0])])
def test_guidance_of_an_unconditional_network_is_a_mistake(scale: float | Tensor) -> None:
    with pytest.raises(UserError, match="needs a network with class labels"):
        guided(labelled, scale, null_label=0)


def test_missing_labels_and_an_infinite_scale_are_mistakes() -> None:
    with pytest.raises(UserError, match="needs labels"):
        guided(labelled, 2.0, null_label=3)(X, T)
    with pytest.raises(UserError, match="guidance_scale of each sample needs labels"):
        guided(labelled, torch.tensor([2.0, 3.0]), null_label=3)(X, T)
    with pytest.raises(UserError, match="finite"):
        guided(labelled, math.nan, null_label=3)
