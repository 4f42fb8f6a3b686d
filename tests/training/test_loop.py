"""The loop: one step against a step written out, accumulation, several networks, what a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from trigflow import recipes
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.data import exact_teacher
from trigflow.models.storage import load_model
from trigflow.objectives import Batch, Diffusion, LossOutput, Objective
from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.system.tensors import read_state
from trigflow.training.assembly import assemble
from trigflow.training.loop import Run, train
from trigflow.training.run_folder import RunFolder, reconstruct

CPU = torch.device("cpu")


def tiny(name: str = "mixture2d-scd", *overrides: str) -> Recipe:
    """A network of 16 channels that sees 320 points in steps of 32."""
    small = ["data.n=100", "network.width=16", "network.depth=1", "train.batch=32", "train.total_nimg=320"]
    quiet = [
        "train.log_nimg=64",
        "train.checkpoint_nimg=128",
        "train.tensorboard=false",
        "sampling.grid_nimg=0",
        "sampling.flow_map_num=0" if name.startswith("mixture2d") else "train.synthetic=0",
    ]
    return recipes.get(name, [*small, *quiet, *overrides])


def trained(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    return train(recipe, folder, resume=resume, device="cpu", progress=False)


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder)[0].state_dict())


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def new_run(recipe: Recipe, folder: Path) -> Run:
    run = Run(recipe, assemble(recipe, CPU), RunFolder(folder, 3))

    class Silent:
        def advance(self, images: int) -> None:
            """No bar."""

    run.reporter = Silent()  # type: ignore[assignment]
    return run


def parameters(run: Run, name: str = "net") -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.trained[name].parameters])


# One step


def test_one_step_is_adam_on_the_objective(tmp_path: Path) -> None:
    """The same step written out: rows, codec, SampleRandom, objective, torch's Adam."""
    recipe = tiny(
        "mixture2d-teacher", "optimizer.name=adam", "optimizer.lr=1e-2", "optimizer.schedule=constant"
    )
    run = new_run(recipe, tmp_path)
    run._step()

    parts = assemble(recipe, CPU)
    net, seed = parts.nets["net"], recipe.train.seed
    optimizer = torch.optim.Adam(net.train().parameters(), lr=1e-2, betas=(0.9, 0.99), eps=1e-8)
    keys = SampleRandom(seed, torch.tensor([0])).uniform("data order", (100,), torch.float64)
    order = keys[0].argsort(stable=True)
    x_0 = parts.dataset.codec.encode(parts.dataset.data[order[:32]])
    random = SampleRandom(seed, torch.arange(32))
    parts.objective(parts.nets, Batch(x_0, {}, 32), 0, random).losses["net"].backward()
    optimizer.step()
    expected = torch.cat([p.detach().flatten() for p in net.parameters()])
    assert torch.allclose(parameters(run), expected, rtol=0, atol=1e-7)
    assert not torch.equal(expected, parameters(new_run(recipe, tmp_path)))


@pytest.mark.parametrize("name", ["mixture2d-teacher", "mixture2d-scd"])
def test_accumulated_gradients_are_those_of_the_large_batch(name: str, tmp_path: Path) -> None:
    options = ["objective.warmup=5"] if name.endswith("scd") else []
    large = new_run(tiny(name, "network.dropout=0.1", *options), tmp_path)
    small = new_run(tiny(name, "network.dropout=0.1", "train.microbatch=8", *options), tmp_path)
    for _ in range(4):
        large._step()
        small._step()
    assert (parameters(large) - parameters(small)).abs().max() < 1e-5
    one, other = large.averages.take(), small.averages.take()
    assert one.keys() == other.keys()
    assert all(one[key] == pytest.approx(other[key], rel=1e-4) for key in one)


@dataclass(frozen=True)
class Two(Objective):
    """Trains two networks whose losses share a graph."""

    trains: tuple[str, ...] = ("net", "score")
    is_consistency: bool = False

    def __call__(
        self, nets: Mapping[str, TrigFlowPrecond], batch: Batch, nimg: int, random: SampleRandom
    ) -> LossOutput:
        loss = Diffusion()(nets, batch, nimg, random)
        score = Diffusion()({"net": nets["score"]}, batch, nimg, random).losses["net"]
        return LossOutput({"net": loss.losses["net"] + 0.1 * score, "score": score}, loss.logs)


def test_each_network_has_its_optimiser_period_and_average(tmp_path: Path) -> None:
    recipe = replace(
        tiny("mixture2d-teacher", "objective=test_loop:Two"),
        optimizers={"score": OptimizerConfig(lr=1e-2, update_period=3)},
    )
    run = new_run(recipe, tmp_path)
    alone = new_run(tiny("mixture2d-teacher", "objective.P_std=1.6"), tmp_path)
    moved = []
    for _ in range(6):
        before = parameters(run, "score")
        run._step()
        alone._step()
        moved.append(not torch.equal(before, parameters(run, "score")))
    assert moved == [True, False, False, True, False, False]
    assert torch.equal(parameters(run), parameters(alone))  # the other network's loss leaves no gradient here
    assert "grad_norm_score" in run.averages.take()
    assert run.trained["score"].ema is not run.trained["net"].ema


def test_label_dropout_is_random_per_image(tmp_path: Path) -> None:
    recipe = recipes.get(
        "digits-teacher", ["network.width=16", "train.label_dropout=0.25", "train.batch=2000"]
    )
    run = new_run(recipe, tmp_path)
    labels = run.batches.of(0, 2000)[0].cond["labels"]
    dropped = labels == 10
    assert dropped.double().mean().item() == pytest.approx(0.25, abs=0.04)
    assert torch.equal(run.batches.of(700, 50)[0].cond["labels"], labels[700:750])
    whole = new_run(replace(recipe, train=replace(recipe.train, label_dropout=0.0)), tmp_path)
    kept = whole.batches.of(0, 2000)[0].cond["labels"]
    assert kept.max() == 9 and torch.equal(kept[~dropped], labels[~dropped])


# What a run leaves behind


def test_a_run_folder(tmp_path: Path) -> None:
    recipe = tiny(
        "mixture2d-scd", "train.tensorboard=true", "sampling.grid_nimg=160", "sampling.grid_count=8"
    )
    folder = trained(recipe, tmp_path / "deep" / "run")
    names = {path.name for path in folder.iterdir()}
    assert {"recipe.json", "metrics.jsonl", "model.json", "model.safetensors"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [
        "nimg-000000000160.png",
        "nimg-000000000320.png",
    ]
    assert len(list((folder / "checkpoints").iterdir())) == 3
    lines = metrics(folder)
    assert [line["nimg"] for line in lines] == [64, 128, 192, 256, 320]
    assert {"loss", "t", "tangent_norm", "grad_norm", "images_per_second"} <= lines[0].keys()
    assert all(math.isfinite(value) for line in lines for value in line.values())


def test_the_model_is_the_average_of_the_weights(tmp_path: Path) -> None:
    folder = trained(tiny(), tmp_path)
    tensors, _ = read_state(sorted((folder / "checkpoints").iterdir())[-1])
    average = {
        name.removeprefix("ema/net/0.050/"): t for name, t in tensors.items() if name.startswith("ema/")
    }
    stored = weights(folder)
    assert stored.keys() == average.keys()
    assert all(torch.equal(stored[name], average[name]) for name in stored)
    assert any(not torch.equal(stored[name], tensors[f"net/net/{name}"]) for name in stored)
    card = load_model(folder)[1]
    assert (card.nimg, card.ema, card.data_shape, card.objective) == (320, "0.050", (2,), "scd")


def test_half_life_average(tmp_path: Path) -> None:
    recipe = replace(tiny(), ema=EMAConfig(kind="halflife", halflife_nimg=100))
    assert load_model(trained(recipe, tmp_path))[1].ema == "halflife"


def test_snapshots_rebuild_other_averages(tmp_path: Path) -> None:
    length = ["train.total_nimg=6400", "train.checkpoint_nimg=6400", "optimizer.lr=1e-2"]
    recipe = replace(tiny("mixture2d-scd", *length), ema=EMAConfig(ema_std=(0.05, 0.1), snapshot_nimg=640))
    folder = trained(recipe, tmp_path / "a")
    direct = trained(replace(recipe, ema=EMAConfig(ema_std=(0.08,))), tmp_path / "b")
    out = reconstruct(folder, tmp_path / "c", ema_std=0.08)
    rebuilt, wanted, last = weights(out), weights(direct), weights(folder)
    assert (load_model(out)[1].ema, load_model(out)[1].nimg) == ("0.080", 6400)

    def distance(tensors: Mapping[str, Tensor]) -> float:
        return float(sum((tensors[name] - wanted[name]).square().sum() for name in wanted))

    assert distance(rebuilt) < 0.02 * distance(last)


def test_reconstruction_tells_mistakes(tmp_path: Path) -> None:
    folder = trained(replace(tiny(), ema=EMAConfig(ema_std=(0.05, 0.1), snapshot_nimg=160)), tmp_path / "a")
    with pytest.raises(UserError, match="is in use"):
        reconstruct(folder, folder, ema_std=0.08)
    (folder / "snapshots" / "nimg-000000000160-std-0.050.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"is damaged .*: remove it to continue without it"):
        reconstruct(folder, tmp_path / "b", ema_std=0.08)
    with pytest.raises(UserError, match="snapshot_nimg"):
        reconstruct(tmp_path / "none", tmp_path / "b", ema_std=0.08)
    assert not (tmp_path / "b").exists()


def test_every_objective_trains_on_every_kind_of_data(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(40) % 3)
    data = f"data={tmp_path / 'mine.npz'}"
    net = ["network=unet", "network.channels=8", "network.channel_mult=[1]", "network.num_blocks=1"]
    small = ["train.total_nimg=64", "train.batch=32", "train.tensorboard=false", "sampling.grid_nimg=0"]
    teacher = train(
        recipes.get("digits-teacher", [data, *net, *small]), tmp_path / "t", device="cpu", progress=False
    )
    for name, source in (("digits-scd", "teacher"), ("digits-sct", "init")):
        recipe = recipes.get(name, [data, *net, *small, f"{source}={teacher}", "train.synthetic=0"])
        folder = train(recipe, tmp_path / name, device="cpu", progress=False)
        assert load_model(folder)[1].num_classes == 3


def test_a_student_with_an_addition_starts_as_its_teacher(tmp_path: Path) -> None:
    """And a part that is no addition must be in the initial weights."""
    options = {"channels": 8, "channel_mult": [1], "num_blocks": 1}
    small = ["train.total_nimg=64", "train.batch=32", "train.tensorboard=false", "sampling.grid_nimg=0"]
    teacher = replace(recipes.get("digits-teacher", small), network=Component("unet", options))
    folder = trained(teacher, tmp_path)
    student = recipes.get("digits-scd", [f"teacher={folder}", "train.synthetic=0"])
    student = replace(student, network=Component("unet", {**options, "input_gain": True}))
    net = assemble(student, CPU).nets["net"]
    x, t = torch.randn(4, 1, 8, 8), torch.linspace(0.1, 1.5, 4)
    assert torch.equal(net(x, t), load_model(folder)[0](x, t))
    deeper = replace(student, network=Component("unet", {**options, "num_blocks": 2}))
    with pytest.raises(UserError, match="it has no tensor"):
        assemble(deeper, CPU)


def test_the_target_follows_the_network(tmp_path: Path) -> None:
    recipe = tiny("mixture2d-scd", "objective.target_halflife=4", "train.checkpoint_nimg=32")
    recipe = replace(recipe, train=replace(recipe.train, batch=32, total_nimg=96, microbatch=None))
    expected = {
        name: tensor.clone() for name, tensor in assemble(recipe, CPU).nets["net"].state_dict().items()
    }
    folder = trained(recipe, tmp_path)
    for step, path in enumerate(sorted((folder / "checkpoints").iterdir()), 1):
        tensors = read_state(path)[0]
        beta = 0.5 ** (32 / min(4, 0.05 * 32 * step))
        for name, average in expected.items():
            average.lerp_(tensors[f"net/net/{name}"], 1 - beta)
            torch.testing.assert_close(average, tensors[f"target/{name}"])
    assert len(list((folder / "checkpoints").iterdir())) == 3


def test_progress_bar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny(), tmp_path, device="cpu", progress=True)
    shown = capsys.readouterr()
    assert "loss=" in shown.err and "tangent_norm=" in shown.err and "100%" in shown.err
    assert shown.out == ""


def test_it_trains_on_each_device(tmp_path: Path, device: torch.device) -> None:
    folder = train(tiny(), tmp_path, device=device, progress=False)
    on_cpu = trained(tiny(), tmp_path / "cpu")
    pairs = zip(weights(folder).values(), weights(on_cpu).values(), strict=True)
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in pairs)


def test_it_learns(tmp_path: Path) -> None:
    """The error of a teacher of the mixture falls towards that of the exact velocity, and not below."""
    size = ["network.width=64", "network.depth=2", "train.batch=256", "train.total_nimg=51200"]
    recipe = tiny("mixture2d-teacher", *size, "train.log_nimg=5120", "train.checkpoint_nimg=51200")
    lines = metrics(trained(replace(recipe, optimizer=OptimizerConfig(lr=1e-2)), tmp_path))
    parts = assemble(recipe, CPU)
    exact = exact_teacher(parts.dataset)

    class Exact(TrigFlowPrecond):
        def forward(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            return exact.velocity(x_t, t) / self.sigma_data

    nets = {"net": Exact(parts.nets["net"].network)}
    x_0 = parts.dataset.codec.encode(parts.dataset.data.repeat(20, 1))
    random = SampleRandom(5, torch.arange(len(x_0)))
    best = parts.objective(nets, Batch(x_0), 0, random).logs["error"].mean().item()
    assert best - 0.03 < lines[-1]["error"] < lines[0]["error"] - 0.03


# Mistakes


@dataclass(frozen=True)
class Broken(Objective):
    """A diffusion loss that is NaN from image 200 on where t > 1.2: its value alone, or its gradient, too."""

    gradient: bool = False
    is_consistency: bool = False

    def __call__(
        self, nets: Mapping[str, TrigFlowPrecond], batch: Batch, nimg: int, random: SampleRandom
    ) -> LossOutput:
        output = Diffusion()(nets, batch, nimg, random)
        bad = (random.index >= 200) & (output.logs["t"] > 1.2)
        losses = torch.where(bad, torch.nan, output.logs["loss"])
        nan = 0 * losses.sum()
        loss = output.losses["net"] * (1 + nan) if self.gradient else output.losses["net"] + nan
        return LossOutput({"net": loss}, output.logs | {"loss": losses})


@pytest.mark.parametrize("gradient", ["false", "true"])
def test_nan_is_stopped_before_it_spoils_the_weights(tmp_path: Path, gradient: str) -> None:
    with pytest.raises(UserError) as caught:
        trained(
            tiny("mixture2d-teacher", "objective=test_loop:Broken", f"objective.gradient={gradient}"),
            tmp_path,
        )
    text = str(caught.value)
    assert "objective 'test_loop:Broken'" in text and "at step 6 (image 2" in text and "loss nan" in text
    assert float(text.split("t = ")[1].split(",")[0]) > 1.2
    tensors, state = read_state(sorted((tmp_path / "checkpoints").iterdir())[-1])
    assert state["nimg"] == 192
    assert all(tensor.isfinite().all() for tensor in tensors.values())
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


def test_mistakes_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'width'"):
        trained(tiny("mixture2d-scd", "network.widht=8"), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_initial_weights_of_seeds_that_differ_in_their_high_word_alone() -> None:
    one, other = (
        assemble(tiny("mixture2d-teacher", f"train.seed={seed}"), CPU).nets["net"].state_dict()
        for seed in (3, 3 + 2**32)
    )
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_the_caller_s_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)  # not that of the run
    before = torch.get_rng_state()
    folder = trained(tiny(), tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before)
    trained(tiny("mixture2d-scd", "train.total_nimg=640"), folder, resume=True)
    assert torch.equal(torch.get_rng_state(), before)
