"""Half precision in the products alone: values, tangents and gradients stay near those of float64, times stay apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_networks import CASES, build, inputs
from torch import Tensor, nn

from trigflow import recipes
from trigflow.dual import value_and_tangent
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
    if case == "unet-3d":  # the weight gradient of a Conv3d on fewer voxels than its kernel's: docs/LOG.md
        del exact["gradient"]
    torch.manual_seed(2)
    rounded = passes(build(case).float(), case, low=True)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32  # what leaves the network is the loss's arithmetic
        error = (rounded[name].double() - value).norm() / value.norm()
        assert error < 0.05, f"{name}: {error:.3f}"  # a unit in the last place of bfloat16 is 0.004 to 0.008


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
