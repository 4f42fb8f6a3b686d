"""Half precision in the products alone: values, tangents and gradients stay near those of float64, times stay apart."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_networks import CASES, B, build, inputs
from torch import Tensor, nn

import trigflow
from trigflow import recipes
from trigflow.core import flow
from trigflow.core.precond import NoiseConditioning, TrigFlowPrecond
from trigflow.dual import Dual, value_and_tangent
from trigflow.networks import NETWORKS
from trigflow.networks.layers import TIME_EMBEDDINGS, pixel_norm
from trigflow.networks.magnitude import unit_magnitude
from trigflow.objectives import Batch
from trigflow.objectives.scm import SCM
from trigflow.system.devices import PRECISIONS, Precision, products_in
from trigflow.system.errors import UserError
from trigflow.training.loop import train

CPU = torch.device("cpu")
LOW: tuple[Precision, ...] = ("bfloat16", "float16")
MEASURE = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "precision.py"))
# Relative to float64, above the largest found (float32 1.3e-6, bfloat16 0.053, float16 0.0033). A unit in the last
# place is 1.2e-7, 0.008 and 0.001.
BOUNDS: dict[Precision, float] = {"float32": 3e-6, "bfloat16": 0.07, "float16": 0.006}


# Beside float64


def on_a_path(case: str, c_noise: NoiseConditioning = "t", size: float = 1.0) -> Any:
    """A network of random weights, and noisy samples on their way."""
    generator = torch.Generator().manual_seed(1)
    x_0, z = (size * torch.randn(2, B, *CASES[case][1], generator=generator) / 2).unbind()
    t = torch.linspace(0.1, 1.5, B)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return flow.velocity_target(x_0.to(x_t.dtype), z.to(x_t.dtype), t)

    net = TrigFlowPrecond(build(case).float(), c_noise=c_noise)
    return MEASURE["Case"](net, flow.interpolate(x_0, z, t), t, {}, velocity)


def errors_of(case: Any, precision: Precision) -> dict[str, float]:
    found: dict[str, float] = MEASURE["errors"](MEASURE["passes"](case, precision), MEASURE["exactly"](case))
    return found


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
def test_value_tangent_and_gradient_stay_near_float64(case: str, precision: Precision) -> None:
    """The tangent is g, of all images; the gradient that of the consistency loss, scaled as in training."""
    errors = errors_of(on_a_path(case), precision)
    if precision == "bfloat16" and case in ("unet-3d", "edm2-3d", "ddpmpp-3d"):
        # the weight gradient of a Conv3d on fewer voxels than its kernel's, in oneDNN: docs/LOG.md
        del errors["gradient"]
    assert max(errors.values()) < BOUNDS[precision], errors


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_trained_networks_stay_near_float64(name: str, precision: Precision) -> None:
    """Their activations sum to more than float16 holds, and beside their teachers most of g cancels."""
    errors = errors_of(MEASURE["of_a_shipped_student"](name, 32), precision)
    assert errors["value"] < BOUNDS[precision], errors
    assert errors["tangent"] < 10 * BOUNDS[precision] and errors["gradient"] < 10 * BOUNDS[precision], errors


def test_the_benchmark_knows_every_network_of_the_table() -> None:
    assert set(MEASURE["SMALL"]) == set(NETWORKS)


def test_what_is_computed_around_the_network_is_not_rounded() -> None:
    """Its value leaves it in the precision of x_t."""
    case = on_a_path("unet-2d")
    for precision in PRECISIONS:
        for dtype in (torch.float32, torch.float64):
            found = MEASURE["passes"](case, precision, dtype)
            assert {part.dtype for part in found.values()} == {dtype}


def test_an_unknown_precision() -> None:
    with pytest.raises(
        UserError, match=r"unknown precision 'float8' \(did you mean 'float32'\?\); there are: float32"
    ):
        products_in("float8", CPU)  # type: ignore[arg-type]


# The range of float16


NORMS = {"pixel_norm": lambda x: pixel_norm(x, 1), "unit_magnitude": lambda x: unit_magnitude(x, 1)}


@pytest.mark.parametrize("size", [0.01, 1.0, 100.0, 10_000.0])
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS.keys())
def test_norms_in_float16(norm: Callable[[Any], Any], size: float) -> None:
    """The squares of 64 channels sum to what float16 holds up to a root mean square of 32 only."""
    generator = torch.Generator().manual_seed(0)
    x, dx, weight = torch.randn(3, 4, 64, 3, 3, generator=generator).clamp(-3, 3).unbind()

    def found(dtype: torch.dtype) -> list[Tensor]:
        leaf = (x * size).to(dtype).requires_grad_()
        output = value_and_tangent(norm, (leaf,), ((dx * size).to(dtype),))
        (output.value * weight.to(dtype)).sum().backward()
        assert leaf.grad is not None and output.value.dtype == dtype
        return [output.value.detach(), output.tangent, leaf.grad * size]

    for low, exact in zip(found(torch.float16), found(torch.float64), strict=True):
        assert (low - exact).norm() < 2e-3 * exact.norm()


@pytest.mark.parametrize("case", CASES)
def test_large_activations_in_float16(case: str) -> None:
    """Of a few hundred, as trained networks have: sums of their squares were infinite, and the output a silent 0."""
    errors = errors_of(on_a_path(case, size=300.0), "float16")
    assert max(errors.values()) < 0.02, errors


class LargestTangent:
    """The largest tangent, in magnitude, among the half-precision outputs of a network's modules."""

    def __init__(self, net: nn.Module) -> None:
        self.found = 0.0
        for module in net.modules():
            module.register_forward_hook(self._look)

    def _look(self, module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Dual) and output.dtype == torch.float16:
            size = output.tangent.abs().nan_to_num(torch.inf, torch.inf)  # inf - inf
            self.found = max(self.found, size.max().item())


def largest_tangent(case: str, c_noise: NoiseConditioning, t: Tensor, scale: Tensor) -> float:
    """Along scale (dx_t/dt, 1)."""
    generator = torch.Generator().manual_seed(1)
    x_0, z = (torch.randn(2, len(t), *CASES[case][1], generator=generator) / 2).unbind()
    x_t, dx_dt = flow.interpolate(x_0, z, t), flow.velocity_target(x_0, z, t)
    net = TrigFlowPrecond(build(case).float(), c_noise=c_noise)
    largest = LargestTangent(net)
    with torch.no_grad(), products_in("float16", CPU):
        value_and_tangent(net, (x_t, t), (flow.expand(scale, x_t) * dx_dt, scale))
    return largest.found


@pytest.mark.parametrize("c_noise", ["t", "edm"])
@pytest.mark.parametrize("case", CASES)
def test_scaled_tangents_have_room_in_float16(case: str, c_noise: NoiseConditioning) -> None:
    """Along (cos t sin t dx/dt, cos t sin t), at the ends of time and between them; float16 ends at 65504."""
    t = torch.tensor([3e-6, 1e-3, 0.1, 0.8, 1.5, 1.5645])
    assert 0 < largest_tangent(case, c_noise, t, t.cos() * t.sin()) < 65504 / 1000


@pytest.mark.parametrize("case", ["unet-2d", "dit-2d", "edm2-2d"])
def test_tangents_that_are_not_scaled_overflow(case: str) -> None:
    """Why: c_noise = log(sigma) / 4 has the derivative 1 / (4 sin t cos t), and the largest product is no number."""
    t = torch.tensor([3e-6, 0.8])
    assert largest_tangent(case, "edm", t, torch.ones_like(t)) == torch.inf


def test_the_objective_takes_the_derivative_along_the_scaled_path(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {}

    def record(net: Any, primals: Any, tangents: Any, **options: Any) -> Dual:
        taken["t"], taken["tangents"] = primals[1], tangents
        return value_and_tangent(net, primals, tangents, **options)

    monkeypatch.setattr("trigflow.dual.value_and_tangent", record)
    net = TrigFlowPrecond(build("unet-2d").float())
    x_0 = torch.randn(B, *CASES["unet-2d"][1]) / 2
    with products_in("float16", CPU):
        SCM(velocity="data")(
            {"net": net}, Batch(x_0), 0, trigflow.core.randomness.SampleRandom(0, torch.arange(B))
        )
    t, (dx, dt) = taken["t"], taken["tangents"]
    assert t.dtype == dx.dtype == dt.dtype == torch.float32
    assert torch.equal(dt, t.cos() * t.sin())
    speed = dx / flow.expand(dt, dx)
    z = net.sigma_data * trigflow.core.randomness.SampleRandom(0, torch.arange(B)).normal(
        "z", tuple(x_0.shape[1:]), x_0.dtype
    )
    torch.testing.assert_close(speed, flow.velocity_target(x_0, z, t), rtol=1e-4, atol=1e-4)


# What stays in full precision


def test_finite_differences_are_taken_in_full_precision() -> None:
    """Half precision's rounding, over a step of 0.005, would be larger than the derivative."""
    net = build("unet-2d").float()
    x, t = (part.float() for part in inputs("unet-2d"))
    found = []
    for low, mode in ((False, "dual"), (True, "finite_difference")):
        with products_in("bfloat16" if low else "float32", CPU):
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
    for precision in PRECISIONS:
        with products_in(precision, CPU):
            found.append(objective._velocity(nets, batch, x_t, z, t, 1.0))
    assert torch.equal(found[1], found[0]) and torch.equal(found[2], found[0])


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("case", CASES)
def test_times_are_embedded_in_float32(case: str, precision: Precision, embedding: str) -> None:
    """In every network. Rounded to bfloat16, 10,000 times would be 769."""
    net = build(case, time_embedding=embedding, fourier_scale=0.5).float()
    seen: list[Tensor] = []
    for module in net.modules():
        if isinstance(module, tuple(TIME_EMBEDDINGS.values())):
            module.register_forward_hook(lambda module, args, output: seen.extend((*args, output)))
    net.embedding.register_forward_hook(lambda module, args, output: seen.append(output))  # type: ignore[union-attr]
    x, t = (part.float() for part in inputs(case))
    many = torch.linspace(0, 1.5, 10_000)
    with torch.no_grad(), products_in(precision, CPU):
        TrigFlowPrecond(net)(x, t)
        embedded = net.embedding(many, None)  # type: ignore[operator]
    assert len(seen) == 6 and torch.equal(seen[0], t)  # of both passes: the times, their waves, the embedding
    assert {part.dtype for part in seen} == {torch.float32}
    assert len(torch.unique(embedded, dim=0)) > 9_000


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
