"""docs/objectives.md, "What makes it stable", in numbers: on Gaussian data, where path and density are known.

A deviation e of the weights of a linear network, dF = Phi e, moves f by u = -sigma_data sin(t) Phi e. The expected step
of the loss changes |e|^2/2 by -(rate/sigma_data) e^T A e, with A_ij = integral w(t) E[u_i du_j/dt] dt and
w = p(t) lambda(t) cot(t). Where the warm-up stops at r < 1 it is r A + (1 - r) B, with
B_ij = integral w cot(t) E[u_i u_j] dt.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from trigflow import recipes
from trigflow.core.oracles import Gaussian
from trigflow.objectives.scm import consistency_tangent

SIGMA_DATA = 0.5
ORACLE = Gaussian(torch.zeros(1), 0.3, SIGMA_DATA)


def features(x: Tensor, t: Tensor) -> Tensor:
    """(points, features): a few functions of x times waves of t, as fast as Fourier features of scale 0.5."""
    waves = [torch.cos(k * t) for k in range(5)] + [torch.sin(k * t) for k in range(1, 5)]
    shapes = [torch.ones_like(x), x, x**2, torch.tanh(3 * x)]
    return torch.stack([shape * wave for shape in shapes for wave in waves], dim=1)


def smallest_eigenvalue(log_weight_of_tau: Tensor, tau: Tensor, r: float = 1.0) -> float:
    """Of the symmetric part of r A + (1 - r) B, over its largest.

    The weight is log(p_tau lambda) on an even grid of tau = log(sigma_data tan t).
    """
    nodes, shares = np.polynomial.hermite_e.hermegauss(40)
    z, share = torch.tensor(nodes), torch.tensor(shares) / math.sqrt(2 * math.pi)
    clock = torch.atan(tau.exp() / SIGMA_DATA)
    t, z = clock.repeat_interleave(len(z)), z.repeat(len(clock))
    std = (clock.cos().square() * 0.3**2 + clock.sin().square() * SIGMA_DATA**2).sqrt()
    x = std.repeat_interleave(len(share)) * z
    v = ORACLE.velocity(x[:, None], t)[:, 0]

    def u(x: Tensor, t: Tensor) -> Tensor:
        return -SIGMA_DATA * torch.sin(t)[:, None] * features(x, t)

    value, along_path = torch.func.jvp(u, (x, t), (v, torch.ones_like(t)))
    weight = (log_weight_of_tau - log_weight_of_tau.max()).exp() / clock.tan()
    weight = (weight[:, None] * share).reshape(-1, 1)
    pull = r * along_path + (1 - r) * value / t.tan()[:, None]
    matrix = (weight * value).T @ pull
    scale = matrix.diagonal().abs().clamp(min=1e-12).rsqrt()
    symmetric = scale[:, None] * (matrix + matrix.T) / 2 * scale
    values = torch.linalg.eigvalsh(symmetric)
    return float(values.min() / values.max())


# The normal distribution's own fall towards data sets in at P_mean - 2 P_std^2 = -7.3, where there is nothing to learn.
TAU = torch.linspace(-7.25, 10, 4001, dtype=torch.float64)


def time_distribution(P_mean: float, P_std: float) -> Tensor:
    return -((TAU - P_mean) ** 2) / (2 * P_std**2)


def falls(log_weight_of_tau: Tensor, r: float = 1.0) -> bool:
    """Whether w sin(t)^(-2 (1 - r) / r) does: w dt = p_tau lambda cot(t) dtau and dtau = dt / (sin t cos t)."""
    log_w = log_weight_of_tau - 2 / r * torch.log(torch.sin(torch.atan(TAU.exp() / SIGMA_DATA)))
    return bool((log_w.diff() <= 1e-12).all())


@pytest.mark.parametrize("P_mean", [-2.0, -1.2, -0.8])
def test_a_falling_weight_contracts(P_mean: float) -> None:
    weight = time_distribution(P_mean, 1.8)
    assert falls(weight)
    assert smallest_eigenvalue(weight, TAU) > -1e-9


@pytest.mark.parametrize(
    "lift",
    [
        torch.log1p(
            (2 * TAU).exp()
        ),  # as a learned weight does, which equalises a loss that vanishes as cos(t)^2
        4 * torch.relu(TAU + 1),
    ],
)
def test_a_weight_lifted_towards_noise_does_not(lift: Tensor) -> None:
    weight = time_distribution(-0.8, 1.8) + lift
    assert not falls(weight)
    assert smallest_eigenvalue(weight, TAU) < -1e-3


def test_a_partial_warmup_contracts_where_a_full_one_does_not() -> None:
    """A narrow time distribution has few of the small times: its weight rises from them on."""
    weight = time_distribution(-0.8, 0.9)
    assert not falls(weight) and falls(weight, r=0.2)
    assert smallest_eigenvalue(weight, TAU) < -1e-4
    assert smallest_eigenvalue(weight, TAU, r=0.2) > -1e-9


@pytest.mark.parametrize("r", [0.25, 0.75, 0.9])
def test_a_partial_warmup_averages_the_denoiser_over_the_path(r: float) -> None:
    """Where g = 0, f(x_t, t) is the mean of D(x_s, s) for u = (sin s / sin t)^((1 - r) / r) uniform in (0, 1)."""
    nodes, shares = np.polynomial.legendre.leggauss(400)
    u, share = torch.tensor(nodes + 1) / 2, torch.tensor(shares) / 2

    def std(t: Tensor) -> Tensor:
        return (t.cos().square() * 0.3**2 + t.sin().square() * SIGMA_DATA**2).sqrt()

    def F(x: Tensor, t: Tensor) -> Tensor:
        s = torch.asin(t.sin()[:, None] * u ** (r / (1 - r)))
        x_s = x * std(s) / std(t)[:, None]
        D = s.cos() * x_s - s.sin() * ORACLE.velocity(x_s.reshape(-1, 1), s.reshape(-1)).reshape(s.shape)
        return (t.cos()[:, None] * x - (D @ share)[:, None]) / (t.sin()[:, None] * SIGMA_DATA)

    t = torch.linspace(0.1, 1.5, 8, dtype=torch.float64)
    x = torch.linspace(-1, 1, 8, dtype=torch.float64)[:, None]
    v = ORACLE.velocity(x, t)
    value, dF_dt = torch.func.jvp(F, (x, t), (v, torch.ones_like(t)))
    scale = (t.cos() * t.sin())[:, None]
    g = consistency_tangent(x, t, value, scale * dF_dt, v, SIGMA_DATA, r)
    whole = consistency_tangent(x, t, value, scale * dF_dt, v, SIGMA_DATA)
    assert g.abs().max() < 1e-4 * whole.abs().max()


@pytest.mark.parametrize("name", ["digits-scd", "digits-sct", "mixture2d-scd", "mixture2d-sct"])
def test_the_weights_of_our_recipes_fall(name: str) -> None:
    options = recipes.get(name).objective.options
    assert options["normalization"] == "none" and options["adaptive_weight"] is False
    assert falls(time_distribution(options["P_mean"], options["P_std"]))  # type: ignore[arg-type]
