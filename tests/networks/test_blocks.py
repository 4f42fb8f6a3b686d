"""The blocks of every network: called as modules, and checkpointed without a change of any number."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trigflow import recipes
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.dual import value_and_tangent
from trigflow.networks import NETWORKS
from trigflow.networks.blocks import blocks, checkpoint_blocks
from trigflow.objectives import SCM, Batch, Diffusion, Objective
from trigflow.tools.plan import dry_run_step

SMALL: dict[str, dict[str, Any]] = {
    "ddpmpp": {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_levels": (1,)},
    "dit": {"width": 32, "depth": 2, "heads": 2},
    "edm2": {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_levels": (1,)},
    "mlp": {"width": 16, "depth": 2},
    "unet": {"channels": 8, "num_blocks": 1, "attention_levels": (1,), "input_gain": True},
}


def small(name: str, dropout: float = 0.2) -> TrigFlowPrecond:
    """In float64, with no weight at zero (fresh ones would hide what is before them)."""
    torch.manual_seed(0)
    net = NETWORKS[name]((1, 8, 8), 3, dropout=dropout, **SMALL[name])
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return TrigFlowPrecond(net).double()


def loss(net: TrigFlowPrecond, objective: Objective, batch: int = 4) -> Tensor:
    x_0 = torch.randn(batch, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    random = SampleRandom(0, torch.arange(batch))
    return objective({"net": net}, Batch(x_0, {"labels": torch.arange(batch) % 3}), 0, random).losses["net"]


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_are_called_and_hold_most_of_the_weights(name: str) -> None:
    net = small(name)
    called: list[nn.Module] = []
    for block in blocks(net):
        block.register_forward_hook(lambda module, args, output: called.append(module))
    loss(net, SCM(velocity="data", warmup=0))
    assert called == blocks(net) and len(called) >= 2
    inside = sum(p.numel() for block in blocks(net) for p in block.parameters())
    assert inside > 0.4 * sum(p.numel() for p in net.network.parameters())


@pytest.mark.parametrize("objective", [Diffusion(), SCM(velocity="data", warmup=0)], ids=["diffusion", "scm"])
@pytest.mark.parametrize("name", NETWORKS)
def test_checkpointing_changes_no_gradient(name: str, objective: Objective) -> None:
    plain, again = small(name), small(name)
    checkpoint_blocks(again)
    for net in (plain, again):
        loss(net, objective).backward()  # type: ignore[no-untyped-call]
    for one, other in zip(plain.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-12, atol=1e-14)


def test_the_recomputation_has_no_tangents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the first run are let go, and the second computes none."""
    net = small("mlp", dropout=0.0)
    checkpoint_blocks(net)
    x, t = torch.randn(4, 1, 8, 8, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    output = value_and_tangent(net, (x, t), (x, t), cond={"labels": torch.zeros(4, dtype=torch.int64)})
    assert not output.tangent.requires_grad

    def forbidden() -> None:
        raise AssertionError("a tangent was recomputed")

    import trigflow.dual.value as value

    original = value.paired

    def watched(result: Any, tangent: Any) -> Any:
        return original(result, forbidden)

    monkeypatch.setattr(value, "paired", watched)
    output.value.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_checkpointed_consistency_step_needs_little_more_than_a_diffusion_step(name: str) -> None:
    """The peak of activations, tangents and transients of sCT's step, both checkpointed."""
    options = [
        f"network={name}",
        *(f"network.{key}={list(v) if isinstance(v, tuple) else v}" for key, v in LARGER[name].items()),
    ]
    peaks = {}
    for recipe in ("digits-teacher", "digits-sct"):
        made = dry_run_step(recipes.get(recipe, options), (1, 16, 16), 10, checkpointing=True)
        peaks[recipe] = sum(made.timeline(128).peak())
    assert peaks["digits-sct"] <= 1.15 * peaks["digits-teacher"], peaks


LARGER: dict[str, dict[str, Any]] = copy.deepcopy(SMALL) | {
    "ddpmpp": {"channels": 16, "channel_mult": (1, 2), "num_blocks": 4, "attention_levels": (1,)},
    "dit": {"width": 64, "depth": 8, "heads": 2},
    "mlp": {"width": 128, "depth": 8},
    "unet": {"channels": 16, "num_blocks": 4},
    "edm2": {"channels": 16, "channel_mult": (1, 2), "num_blocks": 4, "attention_levels": (1,)},
}
