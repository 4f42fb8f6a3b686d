"""Several processes over gloo train as one does: the same losses, checkpoints for any number of them, clear ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import Job, run, run_commands, start
from test_loop import metrics, weights

from trigflow import recipes
from trigflow.core.randomness import SampleRandom
from trigflow.objectives import Batch, Diffusion, LossOutput, Nets, Objective
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component
from trigflow.system.distributed import SINGLE_PROCESS
from trigflow.system.errors import UserError
from trigflow.training.checkpoint_shards import read_shards
from trigflow.training.loop import train

ROOT = Path(__file__).parents[2]

STEPS, BATCH = 20, 8
QUIET = (
    *(f"train.batch={BATCH}", f"train.total_nimg={STEPS * BATCH}", f"train.log_nimg={BATCH}"),
    *("train.checkpoint_nimg=80", "train.tensorboard=false", "train.synthetic=0", "sampling.grid_nimg=0"),
    # A schedule would depend on where a run ends.
    *("optimizer.rampup_nimg=0", "optimizer.schedule=constant", "train.precision=float32"),
)
# Together: blocks in lists of lists, single numbers as weights, weights normalised after each step, dropout,
# accumulation, a target network, averages of two lengths, rows that the processes do not divide.
UNET = Component("unet", {"channels": 6, "num_blocks": 1, "dropout": 0.1, "input_gain": True})
EDM2 = Component(
    "edm2",
    {
        "channels": 6,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "attention_levels": [1],
        "normalization": "edm2",
    },
)
MLP = Component("mlp", {"width": 9, "depth": 2, "dropout": 0.2})


def recipe(name: str, network: Component, *changes: str) -> Recipe:
    made = recipes.get(name, [*QUIET, *changes])
    return replace(made, network=network)


def trainings(folder: Path) -> dict[str, Recipe]:
    """A diffusion, sCT and sCD, whose teacher is the first."""
    averages = ["ema.kind=power", "ema.ema_std=[0.05, 0.1]", "ema.snapshot_nimg=80"]
    return {
        "diffusion": recipe("digits-teacher", UNET, *averages, "train.microbatch=2"),
        "sct": recipe("digits-sct", EDM2, "init=scratch", "objective.warmup=10"),
        "scd": recipe(
            "digits-scd", replace(UNET), f"teacher={folder / 'diffusion'}", "objective.target_halflife=64"
        ),
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of one process, in float64."""
    folder = tmp_path_factory.mktemp("alone")
    run(1, [Job(recipe, folder / name) for name, recipe in trainings(folder).items()], float64=True)
    return folder


def differences(one: Path, other: Path, key: str = "loss") -> list[float]:
    """Relative, of each line of metrics."""
    pairs = list(zip(metrics(one), metrics(other), strict=True))
    assert len(pairs) == STEPS
    return [abs(a[key] - b[key]) / max(abs(a[key]), 1e-3) for a, b in pairs]


@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_two_processes_have_the_losses_of_one(alone: Path, tmp_path: Path, parallel: str) -> None:
    """Diffusion, sCT and sCD over 20 steps, in float64 to 1e-8; and the same model in the end."""
    cases = trainings(alone)
    run(2, [Job(one, tmp_path / name, parallel=parallel) for name, one in cases.items()], float64=True)
    for name in cases:
        for key in ("loss", "grad_norm", "t"):
            assert max(differences(alone / name, tmp_path / name, key)) < 1e-8, (name, key)
        one, other = weights(alone / name), weights(tmp_path / name)
        assert one.keys() == other.keys()
        assert all(torch.allclose(one[key], other[key], rtol=1e-6, atol=1e-7) for key in one)
    names = [
        sorted(p.name for p in (folder / "diffusion" / "snapshots").iterdir()) for folder in (alone, tmp_path)
    ]
    assert names[0] == names[1] and len(names[0]) == 4


def test_two_networks_on_two_processes(tmp_path: Path) -> None:
    """An objective that trains two networks, whose losses share a graph: the losses of one process, in float64 to 1e-8.

    One has an update period of 3. Runs that are saved on two processes go on in one.
    """
    periods = ["optimizers.score.update_period=3", "optimizers.score.lr=1e-3", "train.microbatch=2"]
    case = recipe("digits-teacher", UNET, "objective=test_loop:Two", *periods)
    half = shorter(case, 80)
    run(1, [Job(case, tmp_path / "one")], float64=True)
    ways = ("fsdp", "ddp")
    both = [Job(case, tmp_path / way, parallel=way) for way in ways]
    run(2, [*both, *(Job(half, tmp_path / f"{way}-half", parallel=way) for way in ways)], float64=True)
    run(1, [Job(case, tmp_path / f"{way}-half", resume=True) for way in ways], float64=True)
    alone = [line["grad_norm_score"] for line in metrics(tmp_path / "one") if "grad_norm_score" in line]
    assert len(alone) == 7
    for name in (*ways, *(f"{way}-half" for way in ways)):
        for key in ("loss", "t", "grad_norm"):
            assert max(differences(tmp_path / "one", tmp_path / name, key)) < 1e-8, (name, key)
        one, other = weights(tmp_path / "one"), weights(tmp_path / name)
        assert all(torch.allclose(one[key], other[key], rtol=1e-6, atol=1e-7) for key in one)
        norms = [line["grad_norm_score"] for line in metrics(tmp_path / name) if "grad_norm_score" in line]
        assert norms == pytest.approx(alone, rel=1e-8)


# Checkpoints for any number of processes


def shorter(one: Recipe, nimg: int) -> Recipe:
    return replace(one, train=replace(one.train, total_nimg=nimg))


def same_curve(one: Path, other: Path, tolerance: float = 1e-8) -> None:
    assert max(differences(one, other)) < tolerance and max(differences(one, other, "grad_norm")) < tolerance


def test_a_run_goes_on_in_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """From two to one, and from one to two, in another strategy; a damaged newest checkpoint falls back."""
    case = trainings(alone)["scd"]
    half = shorter(case, 80)
    run(2, [Job(half, tmp_path / "a"), Job(half, tmp_path / "damaged")], float64=True)
    checkpoints = sorted((tmp_path / "a" / "checkpoints").iterdir())
    assert [path.name for path in checkpoints] == ["nimg-000000000080"]
    assert {path.suffix for path in checkpoints[0].iterdir()} == {".safetensors", ".json"}
    run(1, [Job(half, tmp_path / "b"), Job(case, tmp_path / "a", resume=True)], float64=True)
    same_curve(alone / "scd", tmp_path / "a")

    names = [f"nimg-{nimg:012d}" for nimg in (80, 160)]
    shutil.copytree(tmp_path / "damaged" / "checkpoints" / names[0], tmp_path / "copy")
    newest = tmp_path / "damaged" / "checkpoints" / names[1]
    shutil.copytree(tmp_path / "copy", newest)
    part = sorted(newest.glob("*.safetensors"))[1]
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    said = run(
        2,
        [
            Job(case, tmp_path / "b", resume=True, parallel="ddp"),
            Job(case, tmp_path / "damaged", resume=True, checkpointing=True),
        ],
        float64=True,
    )
    assert said.count(f"checkpoint {names[1]} is damaged (the digest of one of its files is wrong)") == 1
    same_curve(alone / "scd", tmp_path / "b")
    same_curve(alone / "scd", tmp_path / "damaged")

    whole = max((tmp_path / "damaged" / "checkpoints").iterdir())
    read_shards(whole, SINGLE_PROCESS)
    shutil.copy(part, whole / "copy.safetensors")
    with pytest.raises(UserError, match=r"do not belong to it \(copy\.safetensors\)"):
        read_shards(whole, SINGLE_PROCESS)


@pytest.mark.slow
def test_two_machines_and_four_processes(alone: Path, tmp_path: Path) -> None:
    """Sharded within and replicated across two machines, with accumulation; four go on where two have stopped."""
    cases = {
        name: replace(one, train=replace(one.train, microbatch=1)) for name, one in trainings(alone).items()
    }
    half = [Job(shorter(one, 80), tmp_path / name) for name, one in cases.items()]
    run(2, half, float64=True)
    again = [Job(one, tmp_path / name, resume=True, parallel="fsdp") for name, one in cases.items()]
    hybrid = [Job(one, tmp_path / f"{name}-h", parallel="hsdp", machine=2) for name, one in cases.items()]
    run(4, again + hybrid, float64=True)
    for name in cases:
        same_curve(alone / name, tmp_path / name)
        same_curve(alone / name, tmp_path / f"{name}-h")


@pytest.mark.slow
def test_other_precisions(alone: Path, tmp_path: Path) -> None:
    """float32 to 1e-3; float16, whose overflows all processes see, skips the same steps; samples drawn by all."""
    cases = trainings(alone)
    cases["float16"] = replace(
        cases["diffusion"], train=replace(cases["diffusion"].train, precision="float16", microbatch=None)
    )
    drawn = ["train.synthetic=30", "sampling.grid_nimg=80", "sampling.grid_count=3"]
    cases["synthetic"] = recipe("digits-scd", UNET, f"teacher={alone / 'diffusion'}", *drawn)
    for size, folder in ((1, "one"), (2, "two")):
        run(size, [Job(one, tmp_path / folder / name) for name, one in cases.items()])
    for name in cases:
        loose = 2e-2 if name == "float16" else 1e-3
        assert max(differences(tmp_path / "one" / name, tmp_path / "two" / name)) < loose, name
    for folder in ("one", "two"):
        names = sorted(path.name for path in (tmp_path / folder / "synthetic" / "samples").iterdir())
        assert names == [f"nimg-{nimg:012d}.png" for nimg in (80, 160)]
    skipped = [metrics(tmp_path / folder / "float16")[-1]["skipped_steps"] for folder in ("one", "two")]
    assert skipped[0] == skipped[1]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp", "ddp"])
def test_compiled_steps(tmp_path: Path, parallel: str) -> None:
    """Of two processes beside eager ones of one, in float32 to 1e-3: torch.compile and the hooks of shards."""
    scd = ("objective.target_halflife=64", "objective.warmup=40", f"teacher={tmp_path / 'diffusion'}")
    cases = {"diffusion": ("digits-teacher", MLP), "scd": ("digits-scd", MLP, *scd)}
    run(1, [Job(recipe(*case), tmp_path / name) for name, case in cases.items()])
    compiled = {name: recipe(*case, "objective.compile=true") for name, case in cases.items()}
    run(2, [Job(case, tmp_path / f"{name}-2", parallel=parallel) for name, case in compiled.items()])
    for name in cases:
        # Not the norms: the first gradient of sCD, with r almost 0, is all rounding.
        assert max(differences(tmp_path / name, tmp_path / f"{name}-2")) < 1e-3


@pytest.mark.slow
def test_other_modes_of_the_derivative(alone: Path, tmp_path: Path) -> None:
    """torch.func.jvp and two passes go through the hooks of shards as the dual does."""
    sct = trainings(alone)["sct"]
    cases = {
        mode: replace(sct, objective=Component("sct", {**sct.objective.options, "derivative": mode}))
        for mode in ("func", "finite_difference")
    }
    for size in (1, 2):
        run(size, [Job(one, tmp_path / f"{mode}-{size}") for mode, one in cases.items()], float64=True)
    for mode, tolerance in (("func", 1e-8), ("finite_difference", 1e-6)):
        same_curve(tmp_path / f"{mode}-1", tmp_path / f"{mode}-2", tolerance)
        same_curve(alone / "sct", tmp_path / f"{mode}-1", 1e-3)


# Ends


@dataclass(frozen=True)
class Ending(Objective):
    """A diffusion in which the second process meets a signal at `at` images; once, as `flag` then names a file."""

    at: int
    flag: str
    number: int
    is_consistency: bool = False

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        if nimg == self.at and os.environ.get("RANK") == "1" and not Path(self.flag).exists():
            Path(self.flag).touch()
            os.kill(os.getpid(), self.number)
        return Diffusion()(nets, batch, nimg, random)


def ending(flag: Path, number: signal.Signals) -> Recipe:
    changes = [f"objective.at=96 objective.flag={flag} objective.number={int(number)}".split()]
    return recipe("digits-teacher", MLP, "objective=test_distributed:Ending", *changes[0])


@pytest.mark.parametrize(
    "number",
    [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)],
    ids=["killed", "stopped"],
)
def test_the_end_of_a_process_is_told_and_the_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Killed, the other says so and ends; asked to stop, both save and stop together. Neither costs a line."""
    case = ending(tmp_path / "flag", number)
    process = start(2, [Job(case, tmp_path / "run")])
    _, errors = process.communicate(timeout=240)
    assert process.returncode != 0
    told = [line for line in errors.splitlines() if line.startswith("trigflow:")]
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name
    assert len(told) == 1 and "add --resume to the same command" in told[0], errors
    if number == signal.SIGKILL:
        assert "another process of the run has ended" in told[0] and newest == f"nimg-{80:012d}"
    else:
        assert "after 104 images, all saved" in told[0] and newest == f"nimg-{104:012d}"
    run(2, [Job(case, tmp_path / "run", resume=True)])
    (tmp_path / "flag").touch()
    run(1, [Job(case, tmp_path / "whole")])
    same_curve(tmp_path / "whole", tmp_path / "run", 1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.batch=9", "2 processes do not divide the batch of 9 images"),
        ("network.widht=3", "did you mean 'width'"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_one_line_of_one_process(tmp_path: Path, change: str, message: str) -> None:
    network = {"network.widht=3": Component("mlp", {"widht": 3})}.get(change, MLP)
    changes = [] if change.startswith("network") else [change]
    process = start(2, [Job(recipe("digits-teacher", network, *changes), tmp_path / "run")])
    _, errors = process.communicate(timeout=240)
    told = [line for line in errors.splitlines() if line.startswith("trigflow:")]
    assert process.returncode != 0 and len(told) == 1 and message in told[0], errors


def test_a_strategy_needs_torchrun(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start several with torchrun"):
        train(recipe("digits-teacher", MLP), tmp_path / "run", parallel="fsdp")
    assert not (tmp_path / "run").exists()


# Sampling and scores


def test_the_line_of_the_documentation(student_folder: Path, tmp_path: Path) -> None:
    """torchrun reads --num as a short form of one of its own, unless "--" stands before."""
    text = (ROOT / "docs" / "scale.md").read_text()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    assert "-m -- trigflow sample runs/student --num" in text
    out = tmp_path / "s.npy"
    line = ["-m", "--", "trigflow", "sample", str(student_folder), "--num", "3", "--device", "cpu"]
    done = subprocess.run([*torchrun, *line, "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0 and len(np.load(out)) == 3, done.stderr


def test_samples_and_scores_are_those_of_one_process(student_folder: Path, tmp_path: Path) -> None:
    """Seven samples, which two processes do not divide; an evaluation that goes on with some of its scores."""
    for size in (1, 2):
        out = tmp_path / str(size)
        sample = ["sample", str(student_folder), "--num", "7", "--device", "cpu", "--out", f"{out}/s.npy"]
        score = ["evaluate", str(student_folder), "--num", "41", "--seeds", "2", "--steps", "1,2"]
        score += ["--teacher", "none", "--device", "cpu", "--out", f"{out}/report"]
        run_commands(size, [sample, score])
        sorted((out / "report" / "scores").iterdir())[0].unlink()
        run_commands(size, [[*score, "--resume"]])
    one, two = (np.load(tmp_path / str(size) / "s.npy") for size in (1, 2))
    assert len(one) == 7 and np.abs(one.astype(int) - two.astype(int)).max() <= 1
    reports = [json.loads((tmp_path / str(size) / "report" / "report.json").read_text()) for size in (1, 2)]
    for a, b in zip(*(report["students"] for report in reports), strict=True):
        assert a["fds"] == pytest.approx(b["fds"], rel=1e-3)
        assert a["label_agreement"] == pytest.approx(b["label_agreement"], abs=0.03)
