"""Networks of a user's own in the loop: what they may be, and how their faults are told before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trigflow import recipes
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.training.loop import train

SMALL = (
    "data.n=64",
    "train.batch=16",
    "train.total_nimg=64",
    "train.log_nimg=32",
    "train.checkpoint_nimg=32",
    "train.tensorboard=false",
    "sampling.flow_map_num=0",
)


class Plain(nn.Module):
    """What all of them have."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        output: Tensor = self.last(torch.tanh(self.first(torch.cat([x, t[:, None]], 1))))
        return output


class Tied(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.again = self.first


class Frozen(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.first.requires_grad_(False)


class Pair(Plain):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x, t  # type: ignore[return-value]


class Short(Plain):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t)[:, :1]


class Broken(Plain):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        raise RuntimeError("out of order")


class Empty(nn.Module):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def number() -> int:
    return 5


class Drawing(Plain):
    """Draws from torch's own generator, whose state must survive a stop."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.nn.functional.dropout(super().forward(x, t), 0.5, self.training)


class Unlabelled(nn.Module):
    """Takes labels, but does not tell how many."""

    def __init__(self, data_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + 1, 64)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return x * t[:, None, None, None] + self.table(labels).reshape(x.shape)


def trained(kind: str, folder: Path, *overrides: str) -> Path:
    recipe = recipes.get("mixture2d-scd", [f"network=test_own_network:{kind}", *SMALL, *overrides])
    return train(recipe, folder, resume=True, device="cpu", progress=False)


@pytest.mark.parametrize("kind", ["Plain", "Tied", "Frozen", "Drawing"])
def test_they_train_and_sample(kind: str, tmp_path: Path) -> None:
    assert load(trained(kind, tmp_path / "run"), "cpu", trust_code=True).sample(3).shape == (3, 2)


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = Frozen()
    net = load(
        trained("Frozen", tmp_path / "run", "optimizer.lr=0.01"), "cpu", trust_code=True
    ).precond.network
    assert torch.equal(net.first.weight, fresh.first.weight)  # type: ignore[union-attr,arg-type]
    assert not torch.equal(net.last.weight, fresh.last.weight)  # type: ignore[union-attr,arg-type]


def test_their_own_random_numbers_survive_a_stop(tmp_path: Path) -> None:
    constant = "optimizer.schedule=constant"
    whole = load(trained("Drawing", tmp_path / "whole", constant), "cpu", trust_code=True)
    trained("Drawing", tmp_path / "parts", constant, "train.total_nimg=32")
    torch.rand(17)  # another process would have another state
    resumed = load(trained("Drawing", tmp_path / "parts", constant), "cpu", trust_code=True)
    pairs = zip(whole.precond.parameters(), resumed.precond.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("Pair", "returns a tuple"),
        ("Short", r"returns a tensor \(2, 1\) for x \(2, 2\)"),
        ("Broken", "RuntimeError: out of order"),
        ("Empty", "network 'test_own_network:Empty' returns Empty without parameters"),
        ("number", r"network 'test_own_network:number' returns int: a torch\.nn\.Module is needed"),
    ],
)
def test_faults_are_told_first(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        trained(kind, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_without_labels_on_labelled_data(tmp_path: Path) -> None:
    recipe = recipes.get("digits-teacher", ["network=test_own_network:Plain"])
    with pytest.raises(UserError, match=r"forward\(x, t, labels\)"):
        train(recipe, tmp_path / "run", device="cpu", progress=False)


def test_classes_are_those_of_the_data(tmp_path: Path) -> None:
    small = [override for override in SMALL if not override.startswith("data.")]
    recipe = recipes.get(
        "digits-teacher", ["network=test_own_network:Unlabelled", *small, "sampling.steps=2"]
    )
    model = load(train(recipe, tmp_path / "run", device="cpu", progress=False), "cpu", trust_code=True)
    assert model.num_classes == 10
    first, second = model.sample(2, labels=[3, 4])
    assert not torch.equal(first, second)
