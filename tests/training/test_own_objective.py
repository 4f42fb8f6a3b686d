"""Objectives and schedules of a user's own in the loop: their faults are told before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trigflow import recipes
from trigflow.core.randomness import SampleRandom
from trigflow.objectives import Batch, Diffusion, LossOutput, Nets, Objective
from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.training.assembly import assemble
from trigflow.training.loop import train

SMALL = (
    "data.n=64",
    "network=test_own_objective:Normalised",
    "train.batch=16",
    "train.total_nimg=32",
    "train.tensorboard=false",
    "sampling.flow_map_num=0",
)


class Normalised(nn.Module):
    """Has statistics of batches, which a trial must not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.last(self.norm(self.first(torch.cat([x, t[:, None]], 1))).tanh())
        return output


class Irreversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ValueError("no way back")


@dataclass(frozen=True)
class Own(Objective):
    """A diffusion that draws from torch's own generator, and has a mistake from `at` images on."""

    mistake: str = ""
    at: int = 0
    is_consistency: bool = False

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        torch.rand(3)
        output = Diffusion()(nets, batch, nimg, random)
        if nimg < self.at:
            return output
        if self.mistake == "raises":
            raise IndexError("out of range")
        if self.mistake == "exits":
            raise SystemExit(3)
        if self.mistake == "turns":
            return LossOutput({"net": Irreversible.apply(output.losses["net"])}, output.logs)
        if self.mistake == "detaches":
            return LossOutput({"net": output.losses["net"].detach()}, output.logs)
        if self.mistake == "forgets":
            return LossOutput(output.losses, {"loss": output.logs["loss"]})
        return output


def recipe(*overrides: str) -> Recipe:
    return recipes.get("mixture2d-teacher", [*SMALL, "objective=test_own_objective:Own", *overrides])


MISTAKES = pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("raises", "objective 'test_own_objective:Own' fails: IndexError: out of range"),
        ("exits", "fails: SystemExit: 3"),
        ("turns", "fails: ValueError: no way back"),
        ("detaches", "a tensor () without a graph as the loss of 'net'"),
        ("forgets", "logs nothing as 't'"),
    ],
)


@MISTAKES
def test_faults_are_told_first(mistake: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(recipe(f"objective.mistake={mistake}"), tmp_path / "run", device="cpu", progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()


@MISTAKES
def test_faults_of_a_later_step_are_told(mistake: str, message: str, tmp_path: Path) -> None:
    late = recipe(f"objective.mistake={mistake}", "objective.at=16")
    with pytest.raises(UserError) as caught:
        train(late, tmp_path / "run", device="cpu", progress=False)
    assert message in str(caught.value)


def test_the_trial_changes_nothing() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    one = assemble(recipe(), torch.device("cpu")).nets["net"]
    other = assemble(recipe("objective=diffusion"), torch.device("cpu")).nets["net"]
    assert torch.equal(torch.get_rng_state(), before)
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    assert all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in pairs)
    assert all(module.training for module in one.modules())
    assert all(parameter.grad is None for parameter in one.parameters())


class Swapped(Own):
    """Gives each network the loss of the other."""

    trains = ("net", "other")

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        loss = Diffusion()(nets, batch, nimg, random)
        other = Diffusion()({"net": nets["other"]}, batch, nimg, random).losses["net"]
        return LossOutput({"net": other, "other": loss.losses["net"]}, loss.logs)


def test_losses_of_each_other_are_told_first() -> None:
    with pytest.raises(UserError, match="the loss of 'net' does not depend on the weights of 'net'"):
        assemble(recipe("objective=test_own_objective:Swapped"), torch.device("cpu"))


def factor_of_nothing() -> Callable[[int], float]:
    return lambda nimg: 1.0


def no_function() -> float:
    return 0.5


def no_factor() -> Callable[[int, int, int], None]:
    return lambda nimg, batch, total_nimg: None


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("no_function", "returns float: a function (nimg, batch, total_nimg) -> factor"),
        ("factor_of_nothing", "factor of the learning rate is needed): TypeError"),
        ("no_factor", "factor of the learning rate is needed): TypeError"),
    ],
)
def test_faults_of_a_schedule_are_told_first(schedule: str, message: str, tmp_path: Path) -> None:
    wrong = recipe(f"optimizer.schedule=test_own_objective:{schedule}")
    with pytest.raises(UserError) as caught:
        train(wrong, tmp_path / "run", device="cpu", progress=False)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists()
