"""Averages of the weights against closed forms, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from trigflow.system.errors import UserError
from trigflow.training.ema import (
    EMA,
    EMASnapshot,
    gamma_from_std,
    half_life_beta,
    half_life_ema,
    post_hoc_weights,
    power_beta,
    power_ema,
    reconstructed_weights,
)

BATCH = 10


class Scalar(nn.Module):
    """A network of one weight and a counter."""

    count: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))

    def set(self, value: float) -> None:
        self.weight.data.fill_(value)
        self.count += 1


def run(ema_std: tuple[float, ...], steps: int, every: int) -> tuple[EMA, list[EMASnapshot], Scalar]:
    """A weight that wanders along a known path."""
    net = Scalar()
    ema = power_ema(net, ema_std)
    snapshots = []
    for step in range(1, steps + 1):
        net.set(np.sin(step / 40) + step / steps)
        ema.update(net, step * BATCH, BATCH)
        if step % every == 0:
            for std, average in zip(ema_std, ema.averages, strict=True):
                tensors = {name: tensor.clone() for name, tensor in average.items()}
                snapshots.append(EMASnapshot(step * BATCH, std, tensors))
    return ema, snapshots, net


@pytest.mark.parametrize("ema_std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_gamma_gives_its_std_back(ema_std: float) -> None:
    """By EDM2's equation 123."""
    gamma = gamma_from_std(ema_std)
    assert (gamma + 1) ** 0.5 / ((gamma + 2) * (gamma + 3) ** 0.5) == pytest.approx(ema_std, rel=1e-9)


def test_gamma_of_the_paper() -> None:
    """EDM2 states gamma = 6.94 and 16.97 for sigma_rel = 0.10 and 0.05."""
    assert gamma_from_std(0.10) == pytest.approx(6.94, abs=0.005)
    assert gamma_from_std(0.05) == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("ema_std", [0.05, 0.1])
def test_power_ema_has_the_power_profile(ema_std: float) -> None:
    """The share of step k is the integral of the profile over it, [k^(gamma+1) - (k-1)^(gamma+1)] / N^(gamma+1)."""
    steps, gamma = 300, gamma_from_std(ema_std)
    share = [power_beta(gamma, n * BATCH, BATCH) for n in range(1, steps + 1)]
    kept = np.append(np.cumprod(share[::-1])[::-1][1:], 1.0)
    weights = (1 - np.array(share)) * kept
    k = np.arange(1, steps + 1) / steps
    assert np.allclose(weights, np.diff(k ** (gamma + 1), prepend=0.0), atol=1e-13)
    centre = (k * weights).sum()
    assert np.sqrt(((k - centre) ** 2 * weights).sum()) == pytest.approx(ema_std, rel=1e-3)


def test_the_first_update_forgets_the_initial_weights() -> None:
    net = Scalar()
    ema = power_ema(net, (0.05,))
    net.set(3.0)
    ema.update(net, BATCH, BATCH)
    assert ema.averages[0]["weight"].item() == 3.0


def test_what_is_not_floating_point_is_copied() -> None:
    ema, _, net = run((0.05, 0.1), 7, 7)
    assert all(average["count"].item() == 7 == net.count.item() for average in ema.averages)
    assert not ema.averages[0]["weight"].requires_grad


def test_half_life() -> None:
    """After a half-life, half of the old weight is left; the ramp-up bounds it by a share of the images seen."""
    net = Scalar()
    net.set(1.0)
    ema = half_life_ema(net, halflife_nimg=10 * BATCH, rampup_ratio=None)
    net.set(0.0)
    for step in range(1, 11):
        ema.update(net, step * BATCH, BATCH)
    assert ema.averages[0]["weight"].item() == pytest.approx(0.5, rel=1e-12)
    assert half_life_beta(1000, 0.05, 2000, BATCH) == half_life_beta(100, None, 2000, BATCH)


@pytest.mark.parametrize("wanted", [0.06, 0.08, 0.1, 0.15])
def test_post_hoc_shares_rebuild_the_analytic_profile(wanted: float) -> None:
    """Sum of shares times stored profiles against the profile itself, on a fine grid of times."""
    nimg = 1000
    stored = [(n, std) for n in range(50, nimg + 1, 50) for std in (0.05, 0.1)]
    shares = post_hoc_weights(stored, wanted, nimg)
    tau = (np.arange(4000) + 0.5) / 4000 * nimg

    def profile(ema_std: float, end: int) -> np.ndarray:
        gamma = gamma_from_std(ema_std)
        inside = np.minimum(tau / end, 1) ** gamma * (tau <= end)
        return np.asarray((gamma + 1) / end * inside)

    rebuilt = sum(share * profile(std, end) for share, (end, std) in zip(shares, stored, strict=True))
    target = profile(wanted, nimg)
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    error = np.linalg.norm(rebuilt - target) / np.linalg.norm(target)
    assert error < 0.02


def test_a_stored_average_is_its_own_reconstruction() -> None:
    stored = [(500, 0.05), (500, 0.1), (1000, 0.05), (1000, 0.1)]
    assert np.allclose(post_hoc_weights(stored, 0.1, 1000), [0, 0, 0, 1], atol=1e-9)


@pytest.mark.parametrize("wanted", [0.07, 0.12])
def test_reconstruction_equals_an_average_kept_from_the_start(wanted: float) -> None:
    _, snapshots, _ = run((0.05, 0.1), 1000, 25)
    direct, _, net = run((wanted,), 1000, 1000)
    rebuilt = reconstructed_weights(snapshots, wanted)
    assert rebuilt["weight"].item() == pytest.approx(direct.averages[0]["weight"].item(), abs=2e-3)
    assert rebuilt["count"].item() == net.count.item()


def test_reconstruction_of_an_earlier_moment() -> None:
    _, snapshots, _ = run((0.05, 0.1), 1000, 25)
    stored = next(s for s in snapshots if s.nimg == 5000 and s.ema_std == 0.1)
    rebuilt = reconstructed_weights(snapshots, 0.1, nimg=5000)
    assert rebuilt["weight"].item() == pytest.approx(stored.tensors["weight"].item(), abs=1e-8)


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="snapshot_nimg"):
        reconstructed_weights([], 0.05)
    _, snapshots, _ = run((0.05,), 20, 10)
    with pytest.raises(UserError, match="between 0 and"):
        reconstructed_weights(snapshots, 0.3)
    with pytest.raises(UserError, match="lies outside"):
        reconstructed_weights(snapshots, 0.1, nimg=10_000)
