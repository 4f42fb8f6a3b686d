"""Both terms of df/dt = d_t f + grad_x f . dx/dt over t: after the paper's figure 4."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from trigflow.core import flow
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset
from trigflow.dual import value_and_tangent
from trigflow.models.model import Model

SIGMAS = (0.002, 80.0)  # ends of the grid, which is even in log(sigma)
POINTS, NUM = 33, 256


@torch.no_grad()
def derivative_norms(
    model: Model, teacher: Model, dataset: Dataset, num: int = NUM, points: int = POINTS
) -> dict[str, list[float]]:
    """Norms (root mean square over the elements, median over the samples) along the teacher's paths, in float32.

    Args:
        model: whose f is differentiated.
        teacher: whose velocity is dx/dt (a teacher's own for itself), guided for a student that takes the scale.
        dataset: x_t is its data with noise.
        num: samples at each time.
        points: times.

    Returns:
        "t"; "time": |d_t f|; "space": |grad_x f . dx/dt|; "tangent": |df/dt|; each one number for each time.
    """
    place, sigma_data = model.device, model.precond.sigma_data
    random = SampleRandom(0, torch.arange(num, device=place))
    # A random order: files are often sorted by their classes.
    order = torch.randperm(len(dataset.data), generator=torch.Generator().manual_seed(0))
    chosen = order[torch.arange(num) % len(order)]
    x_0 = dataset.codec.encode(dataset.data[chosen]).to(place)
    z = sigma_data * random.normal("z", tuple(x_0.shape[1:]))
    labels = None if dataset.labels is None else dataset.labels[chosen]
    scale = 1.0 if model.guidance_range is None else model.card.sampling.guidance_scale
    cond, of_teacher = (one.conditions(labels, torch.full((num,), scale)) for one in (model, teacher))
    norms: dict[str, list[float]] = {"t": [], "time": [], "space": [], "tangent": []}
    low, high = (math.log(sigma) for sigma in SIGMAS)
    for sigma in torch.linspace(low, high, points).exp().tolist():
        t = torch.full((num,), flow.t_from_sigma(sigma, sigma_data), device=place)
        x_t = flow.interpolate(x_0, z, t)
        terms = _terms(model, x_t, t, teacher.velocity(scale)(x_t, t, **of_teacher), cond)
        norms["t"].append(float(t[0]))
        for name, term in terms.items():
            norms[name].append(_rms(term))
    return norms


def _terms(
    model: Model, x_t: Tensor, t: Tensor, dx_dt: Tensor, cond: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Of f = cos(t) x_t - sigma_data sin(t) F, by the product rule."""
    F, sigma_data = model.precond, model.precond.sigma_data
    cos, sin = flow.expand(t.cos(), x_t), flow.expand(t.sin(), x_t)
    along_t = value_and_tangent(F, (x_t, t), (torch.zeros_like(x_t), torch.ones_like(t)), cond=cond)
    along_x = value_and_tangent(F, (x_t, t), (dx_dt, torch.zeros_like(t)), cond=cond)
    in_time = -sin * x_t - sigma_data * (cos * along_t.value + sin * along_t.tangent)
    in_space = cos * dx_dt - sigma_data * sin * along_x.tangent
    return {"time": in_time, "space": in_space, "tangent": in_time + in_space}


def _rms(x: Tensor) -> float:
    return float(x.flatten(1).square().mean(1).sqrt().median())
