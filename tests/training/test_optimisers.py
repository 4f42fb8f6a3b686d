"""Optimisers against torch's, learning rates against the paper's formulas."""

from __future__ import annotations

import math

import pytest
import torch

from trigflow.recipes.schema import OptimizerConfig
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.training.optimisers import (
    SCHEDULES,
    learning_rate,
    load_optimizer_tensors,
    new_optimizer,
    optimizer_tensors,
    rectify,
)

BATCH, TOTAL = 10, 1000


def parameters() -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn(4, 3, dtype=torch.float64, requires_grad=True) for _ in range(3)]


def descend(optimizer: torch.optim.Optimizer, tensors: list[torch.Tensor], first: int, last: int) -> None:
    for step in range(first, last):
        for tensor in tensors[:-1]:  # the last one never has a gradient
            tensor.grad = torch.sin(3 * tensor.detach() + step)
        optimizer.step()


@pytest.mark.parametrize("beta_2", [0.99, 0.999])
def test_radam_is_torchs_radam(beta_2: float) -> None:
    """Tensor by tensor; also for one that joins late, whose steps are its own."""
    ours, theirs = parameters(), parameters()
    betas = (0.9, beta_2)
    optimizers = (
        new_optimizer(OptimizerConfig(name="radam", lr=1e-2, betas=betas, eps=1e-13), ours),
        torch.optim.RAdam(theirs, lr=1e-2, betas=betas, eps=1e-13, foreach=False),
    )
    for step in range(60):
        for optimizer, tensors in zip(optimizers, (ours, theirs), strict=True):
            if step >= 40:
                tensors[-1].grad = torch.cos(3 * tensors[-1].detach() + step)
            descend(optimizer, tensors, step, step + 1)
        if step == 39:
            assert torch.equal(ours[-1], parameters()[-1])
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-11)
    assert optimizers[0].param_groups[0]["lr"] == 1e-2


def test_rectification_starts_after_a_few_steps_and_ends_at_one() -> None:
    assert [rectify(t, 0.99) > 0 for t in range(1, 8)] == [False] * 5 + [True] * 2
    assert rectify(100_000, 0.99) == pytest.approx(1)


@pytest.mark.parametrize("name", ["adam", "radam"])
def test_optimizer_state_round_trip(name: str) -> None:
    """Going on from the stored state is going on."""
    config = OptimizerConfig(name=name, lr=1e-2)
    whole, first, second = parameters(), parameters(), parameters()
    descend(new_optimizer(config, whole), whole, 0, 12)
    before = new_optimizer(config, first)
    descend(before, first, 0, 7)
    stored = {key: tensor.clone() for key, tensor in optimizer_tensors(before).items()}
    with torch.no_grad():
        for a, b in zip(second, first, strict=True):
            a.copy_(b)
    after = new_optimizer(config, second)
    load_optimizer_tensors(after, stored)
    descend(after, second, 7, 12)
    assert all(torch.equal(a, b) for a, b in zip(whole, second, strict=True))


def rate(schedule: Component, nimg: int, **options: object) -> float:
    config = OptimizerConfig(lr=2.0, schedule=schedule, **options)
    return learning_rate(config, BATCH, TOTAL)(nimg) / 2.0


def test_inverse_sqrt_is_edm2s() -> None:
    schedule = Component("inverse_sqrt", {"t_ref": 20})
    assert rate(schedule, 200) == 1
    assert rate(schedule, 800) == pytest.approx(1 / math.sqrt(800 / (20 * BATCH)))


def test_linear_and_cosine_end_at_zero_or_where_told() -> None:
    assert rate(Component("linear"), 250) == 0.75
    assert rate(Component("linear"), TOTAL) == 0 == rate(Component("cosine"), TOTAL)
    assert rate(Component("linear", {"final": 0.1}), TOTAL) == pytest.approx(0.1)
    assert rate(Component("cosine"), 500) == pytest.approx(0.5)
    assert rate(Component("cosine", {"final": 0.2}), TOTAL) == pytest.approx(0.2)


@pytest.mark.parametrize("name", sorted(SCHEDULES))
def test_every_schedule_falls_from_one(name: str) -> None:
    schedule = Component(name, {"t_ref": 5} if name == "inverse_sqrt" else {})
    rates = [rate(schedule, nimg) for nimg in range(0, TOTAL + 1, BATCH)]
    assert rates[0] == 1 and rates == sorted(rates, reverse=True)
    assert rates[-2] > 0


def test_rampup_counts_images_and_wastes_no_step() -> None:
    rates = [rate(Component("constant"), nimg, rampup_nimg=40) for nimg in range(0, 60, BATCH)]
    assert rates == [0.25, 0.5, 0.75, 1, 1, 1]


def test_mistakes_are_told() -> None:
    with pytest.raises(UserError, match="did you mean 'linear'"):
        rate(Component("liner"), 0)
    with pytest.raises(UserError, match=r"optimizer\.schedule\.t_ref is missing"):
        rate(Component("inverse_sqrt"), 0)
    with pytest.raises(UserError, match=r"optimizer\.schedule\.final = 2"):
        rate(Component("linear", {"final": 2}), 0)
