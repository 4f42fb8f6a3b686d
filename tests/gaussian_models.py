"""Models that are exact for Gaussian data: their samples, flow maps and Frechet distances are known numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trigflow.core.flow import expand
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.samplers import SamplingPlan
from trigflow.data.codecs import IdentityCodec, codec_to_json
from trigflow.models.card import ModelCard
from trigflow.models.model import Model
from trigflow.recipes.schema import PrecondConfig, SamplingConfig
from trigflow.system.config import Component

SIGMA_DATA, S_0 = 0.5, 0.2


class GaussianNetwork(nn.Module):
    """F of data N(0, S_0^2); with labels, the mean is the label (0, 1, 2), and 0 for the null label 3."""

    def __init__(self, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.unused = nn.Parameter(torch.zeros(7))

    def mean(self, x: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            return torch.zeros_like(x)
        return expand(torch.where(labels < self.num_classes, labels, 0).to(x), x).expand_as(x)


class Teacher(GaussianNetwork):
    """Velocity -sin t mean + (x_t - cos t mean) cos t sin t (sigma_data^2 - S_0^2) / var, over sigma_data."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        mean, x_t, t = self.mean(x, labels), SIGMA_DATA * x, expand(t, x)
        var = t.cos() ** 2 * S_0**2 + t.sin() ** 2 * SIGMA_DATA**2
        slope = t.cos() * t.sin() * (SIGMA_DATA**2 - S_0**2) / var
        return (slope * (x_t - t.cos() * mean) - t.sin() * mean) / SIGMA_DATA


class Student(GaussianNetwork):
    """F with f(x_t, t) = mean + (x_t - cos t mean) S_0 / sd(t)."""

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        mean, x_t, t = self.mean(x, labels), SIGMA_DATA * x, expand(t, x)
        sd = (t.cos() ** 2 * S_0**2 + t.sin() ** 2 * SIGMA_DATA**2).sqrt()
        f = mean + (x_t - t.cos() * mean) * S_0 / sd
        return (t.cos() * x_t - f) / (t.sin() * SIGMA_DATA)


def nfe_of(model: Model, plan: SamplingPlan) -> int:
    """Evaluations of the network, counted while two batches are drawn."""
    counter = model.counter()
    assert len(list(model.sample_batches(3, plan, batch=2, counter=counter))) == 2
    return counter.nfe


def gaussian_model(kind: type[GaussianNetwork], num_classes: int = 0, **sampling: Any) -> Model:
    """An exact model of vectors in the plane."""
    plan = {"sampler": "consistency", "steps": 2} if kind is Student else {"sampler": "heun", "steps": 32}
    card = ModelCard(
        name=kind.__name__.lower(),
        network=Component("mlp"),
        precond=PrecondConfig(sigma_data=SIGMA_DATA),
        data_shape=(2,),
        num_classes=num_classes,
        codec=codec_to_json(IdentityCodec(SIGMA_DATA)),
        data="gaussian",
        objective="scd" if kind is Student else "diffusion",
        sampling=SamplingConfig(**(plan | sampling)),
    )
    precond = TrigFlowPrecond(kind(num_classes), sigma_data=SIGMA_DATA).eval()
    return Model(precond, IdentityCodec(SIGMA_DATA), card, card.name)
