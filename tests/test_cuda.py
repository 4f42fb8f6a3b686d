"""What a GPU computes is what the CPU computes; skipped without one.

Fixtures run a part of the other tests on each device besides, and test_attention takes the Triton kernel there.
"""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from test_attention import relative
from test_networks import CASES
from test_precision import on_a_path
from torch import Tensor, nn

from trigflow import load, recipes
from trigflow.commands import cli
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset
from trigflow.data.codecs import IdentityCodec, ImageCodec
from trigflow.dual import value_and_tangent
from trigflow.recipes.schema import TrainConfig
from trigflow.system.devices import PRECISIONS, Precision, products_in, true_float32
from trigflow.system.distributed import World
from trigflow.training.batches import Batches
from trigflow.training.loop import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MEASURE = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "precision.py"))
BOUNDS: dict[Precision, float] = {"float32": 1e-5, "bfloat16": 0.07, "float16": 0.006}


# Numbers


def test_random_numbers_are_the_same() -> None:
    index = torch.arange(1000)
    here, there = SampleRandom(3, index), SampleRandom(3, index.to(CUDA))
    assert torch.equal(here.uniform("a", (5,)), there.uniform("a", (5,)).cpu())
    torch.testing.assert_close(there.normal("a", (5,)).cpu(), here.normal("a", (5,)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layer", [nn.Conv2d(64, 64, 3), nn.Linear(64, 64)], ids=["Conv2d", "Linear"])
@true_float32()
def test_float32_is_not_tf32(layer: nn.Module) -> None:
    x = torch.randn(8, 64, 64, 64)
    with torch.no_grad():
        expected = layer.double()(x.double())
        assert relative(layer.float().to(CUDA)(x.to(CUDA)).cpu(), expected) < 1e-6


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", CASES)
@true_float32()
def test_value_tangent_and_gradient_stay_near_float64(case: str, precision: Precision) -> None:
    whole = on_a_path(case)
    found = MEASURE["passes"](MEASURE["on"](whole, CUDA), precision)
    errors = MEASURE["errors"](
        {part: value.cpu() for part, value in found.items()}, MEASURE["exactly"](whole)
    )
    assert max(errors.values()) < BOUNDS[precision], errors


@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # we know, and want float32
@pytest.mark.parametrize("case", ["unet-2d", "dit-2d", "edm2-2d", "ddpmpp-2d"])
@pytest.mark.parametrize("mode", ["func", "dual"])
@true_float32()
def test_compiled_derivatives_equal_eager_ones(case: str, mode: str) -> None:
    whole = MEASURE["on"](on_a_path(case), CUDA)
    directions = (torch.randn_like(whole.x_t), torch.randn_like(whole.t))

    def derivative(x_t: Tensor, t: Tensor) -> Any:
        return value_and_tangent(whole.net, (x_t, t), directions, mode=mode)

    eager, compiled = (function(whole.x_t, whole.t) for function in (derivative, torch.compile(derivative)))
    assert relative(compiled.value, eager.value.double()) < 1e-5
    assert relative(compiled.tangent, eager.tangent.double()) < 1e-5


# Runs


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


SMALL = (
    *("network=unet", "network.channels=16", "network.num_blocks=1"),
    *("train.batch=16", "train.total_nimg=128", "train.log_nimg=16", "train.tensorboard=false"),
    "sampling.grid_nimg=0",
)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_trainings_lose_what_they_lose_on_the_cpu(
    small_images: Path, tmp_path: Path, precision: Precision
) -> None:
    """A diffusion, its distillation, and consistency training from it."""
    own = [f"data={small_images}", *SMALL, f"train.precision={precision}"]
    teacher = train(
        recipes.get("cifar10-small-teacher", own), tmp_path / "base", device="cpu", progress=False
    )
    runs = {
        "teacher": recipes.get("cifar10-small-teacher", own),
        "scd": recipes.get("cifar10-small-scd", [*own, f"teacher={teacher}"]),
        "sct": recipes.get("mnist-sct", [*own, f"init={teacher}", "network=unet"]),
    }
    rtol = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}[precision]
    for name, recipe in runs.items():
        found = [
            losses(train(recipe, tmp_path / f"{name}-{device}", device=device, progress=False))
            for device in (CPU, CUDA)
        ]
        assert found[1] == pytest.approx(found[0], rel=rtol), name


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    own = [*TINY, "optimizer.schedule=constant", "train.total_nimg=64"]
    whole = train(recipes.get("digits-teacher", own), tmp_path / "whole", device="cuda", progress=False)
    half = [*own, "train.total_nimg=32"]
    train(recipes.get("digits-teacher", half), tmp_path / "parts", device="cuda", progress=False)
    recipe = recipes.get("digits-teacher", own)
    parts = train(recipe, tmp_path / "parts", resume=True, device="cuda", progress=False)
    expected = load(whole, "cpu").precond.state_dict()
    for name, tensor in load(parts, "cpu").precond.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_samples_are_those_of_the_cpu(name: str) -> None:
    here, there = (load(name, device).sample(8, seed=4, steps=2).float() for device in ("cpu", "cuda"))
    assert (here - there.cpu()).abs().max() < 2e-2  # of pixel values: they are the same


def test_an_evaluation(tmp_path: Path) -> None:
    own = ["--num", "200", "--seeds", "1", "--steps", "1,2", "--device", "cuda"]
    assert cli.main(["evaluate", "digits", *own, "--out", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "report.json").is_file()


# The way of the data


@pytest.mark.parametrize("spread", [False, True])
def test_batches_that_are_read_ahead_are_those_of_the_device(spread: bool) -> None:
    """Bit for bit, while the device is kept busy, so that nothing of a batch may be taken before it is there."""
    data = torch.randn(200, 8, 32, 32).half()
    whole = Dataset(
        "latents", data, torch.arange(200) % 10, 10, IdentityCodec(), spread=data if spread else None
    )
    config = TrainConfig(batch=64, microbatch=16, total_nimg=640, label_dropout=0.2)
    world, busy = World(device=CUDA), torch.randn(2048, 2048, device=CUDA)
    ahead, there = (
        Batches(replace(whole, mapped=True).to(CUDA), config, world),
        Batches(whole.to(CUDA), config, world),
    )
    sums = []
    for first in range(0, 640, 16):
        for _ in range(20):
            busy = (busy @ busy).tanh()
        (one, here), (other, _) = ahead.of(first, 16), there.of(first, 16)
        assert one.x_0.device == here.index.device == one.cond["labels"].device == busy.device
        same = (one.x_0 == other.x_0).all() & (one.cond["labels"] == other.cond["labels"]).all()
        sums.append(same)  # looked at when all are done: the loop does not wait
    ahead.close()
    assert torch.stack(sums).all()


def test_batches_of_the_device_wait_for_nothing() -> None:
    pixels = torch.randint(0, 256, (100, 3, 8, 8), dtype=torch.uint8)
    images = Dataset("images", pixels, torch.arange(100) % 10, 10, ImageCodec((120.0,), (60.0,)), flip=True)
    config = TrainConfig(batch=20, total_nimg=100, label_dropout=0.2)
    batches = Batches(images.to(CUDA), config, World(device=CUDA))
    former = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for first in range(0, 100, 20):
            batches.of(first, 20)
    finally:
        torch.cuda.set_sync_debug_mode(former)


def test_samples_stay_on_the_device() -> None:
    model = load("digits", "cuda")
    there, here = model.sample(8, seed=4, on_device=True), model.sample(8, seed=4)
    assert there.device == model.device and here.device == CPU
    assert torch.equal(there.cpu(), here)


def test_autocast_of_the_gpu_is_used() -> None:
    with products_in("bfloat16", CUDA):
        assert (torch.ones(2, 2, device=CUDA) @ torch.ones(2, 2, device=CUDA)).dtype == torch.bfloat16
