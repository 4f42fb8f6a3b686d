"""Half precision in the products alone: values, tangents and gradients stay near those of float64, times stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_networks import CASES, build, inputs
from torch import Tensor, nn

from trigflow import flow, recipes
from trigflow.dual import value_and_tangent
from trigflow.objectives import Batch
from trigflow.objectives.scm import SCM
from trigflow.precond import TrigFlowPrecond
from trigflow.train import train


def passes(net: nn.Module, case: str, low: bool) -> dict[str, Tensor]:
    """Value, tangent along a direction, and the gradient of the value's sum of squares."""
    dtype = next(net.parameters()).dtype
    x, t = (part.to(dtype) for part in inputs(case))
    dx = torch.randn_like(x.double(), dtype=torch.float64).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = value_and_tangent(TrigFlowPrecond(net), (x, t), (dx, torch.ones_like(t)))
    output.value.square().sum().backward()
    gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return {"value": output.value.detach(), "tangent": output.tangent, "gradient": gradient}


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_stays_near_float64(case: str) -> None:
    torch.manual_seed(2)
    exact = passes(build(case), case, low=False)
    if case in (
        "unet-3d",
        "edm2-3d",
        "ddpmpp-3d",
    ):  # the weight gradient of a Conv3d on fewer voxels than its kernel's: docs/LOG.md
        del exact["gradient"]
    torch.manual_seed(2)
    rounded = passes(build(case).float(), case, low=True)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32  # what leaves the network is the loss's arithmetic
        error = (rounded[name].double() - value).norm() / value.norm()
        assert error < 0.05, f"{name}: {error:.3f}"  # a unit in the last place of bfloat16 is 0.004 to 0.008


def test_finite_differences_are_taken_in_full_precision() -> None:
    """Half precision's rounding, over a step of 0.005, would be larger than the derivative."""
    net = build("unet-2d").float()
    x, t = (part.float() for part in inputs("unet-2d"))
    found = []
    for low, mode in ((False, "dual"), (True, "finite_difference")):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            directions = (torch.ones_like(x), torch.ones_like(t))
            found.append(value_and_tangent(TrigFlowPrecond(net), (x, t), directions, mode=mode))
    found[1].value.square().sum().backward()
    gradients = [p.grad for p in net.parameters() if p.grad is not None]
    assert gradients and all(
        gradient.abs().sum() > 0 for gradient in gradients[-2:]
    )  # autocast's cache is no trap
    assert (found[1].tangent - found[0].tangent).norm() < 0.01 * found[0].tangent.norm()
    assert not torch.equal(found[1].value, found[0].value)  # the value itself is rounded


def test_the_stable_velocity_is_taken_in_full_precision() -> None:
    batch = Batch(torch.randn(32, 2) / 100, {})  # near each other: the sums nearly cancel
    z, t = torch.randn(32, 2) / 2, torch.linspace(0.01, 1.5, 32)
    objective, nets = SCM(velocity="data", stable_target=True), {"net": TrigFlowPrecond(nn.Identity())}
    x_t = flow.interpolate(batch.x_0, z, t)
    found = []
    for low in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            found.append(objective._velocity(nets, batch, x_t, z, t, 1.0))
    assert torch.equal(*found)


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_near_times_stay_apart(embedding: str) -> None:
    """Rounded to bfloat16, 10,000 times would be a few hundred."""
    net = build("unet-2d", time_embedding=embedding, fourier_scale=0.5).float()
    t = torch.linspace(0, 1.5, 10_000)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        emb = net.embedding(t, None)  # type: ignore[operator]
    assert emb.dtype == torch.float32
    assert len(torch.unique(emb, dim=0)) > 9_000


def test_a_run_in_bfloat16_learns_and_is_kept_in_float32(tmp_path: Path) -> None:
    tiny = ("network.width=32", "network.depth=1", "train.batch=64", "train.log_nimg=1280")
    losses = {}
    for precision in ("float32", "bfloat16"):
        recipe = recipes.get(
            "digits-teacher",
            [*tiny, "train.total_nimg=2560", "sampling.grid_nimg=0", f"train.precision={precision}"],
        )
        train(recipe, tmp_path / precision, device="cpu", progress=False)
        lines = (tmp_path / precision / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [float(line.split('"error": ')[1].split(",")[0].rstrip("}")) for line in lines]
    first, last = losses["bfloat16"]
    assert last < first
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


@pytest.mark.parametrize("case", CASES)
def test_networks_have_shapes_without_numbers(case: str) -> None:
    """On "meta", which autocast does not know: parameters and FLOPs of networks too large for this machine."""
    net = TrigFlowPrecond(build(case)).to("meta")
    x, t = (part.to("meta") for part in inputs(case))
    assert net(x, t).shape == x.shape and net.logvar(t).shape == t.shape
