"""Stopping and going on: by Ctrl-C, by kill -9, by damage; and what a folder in use says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY
from test_loop import metrics, tiny, trained, weights

from trigflow import recipes
from trigflow.commands.cli import main
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.models.storage import read_card
from trigflow.objectives import SCM, Batch, LossOutput, Objective
from trigflow.recipes.schema import Recipe
from trigflow.system.config import to_json
from trigflow.system.errors import UserError
from trigflow.system.files import locked
from trigflow.system.signals import stop_on_signals
from trigflow.system.tensors import read_state, write_state
from trigflow.training.loop import Run, train
from trigflow.training.run_folder import open_run

Change = Callable[[dict[str, torch.Tensor], dict[str, Any]], object]

# Dropout, accumulation, two averages and a warm-up under way: all that a resumed run must take up where it was.
EVERYTHING = (
    *("network.dropout=0.2", "train.microbatch=16", "ema.ema_std=[0.05, 0.1]", "ema.snapshot_nimg=96"),
    *(
        "objective.warmup=7",
        "objective.target_halflife=64",
        "optimizer.schedule=cosine",
        "optimizer.rampup_nimg=96",
    ),
)


def same(one: Path, other: Path) -> bool:
    pairs = zip(weights(one).values(), weights(other).values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_times(folder: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in metrics(folder)]


@dataclass(frozen=True)
class Signalling(Objective):
    """sCD that sends the process a signal in the step that begins at `at` images; once, if `flag` names a file."""

    at: int
    flag: str
    number: int = int(signal.SIGINT)
    needs_teacher: bool = True
    is_consistency: bool = True
    forwards_per_image: float = 3.0

    def __call__(
        self, nets: Mapping[str, TrigFlowPrecond], batch: Batch, nimg: int, random: SampleRandom
    ) -> LossOutput:
        if nimg == self.at and not Path(self.flag).exists():
            Path(self.flag).touch()
            signal.raise_signal(self.number)
        return SCM(velocity="teacher", warmup=7)(nets, batch, nimg, random)


def signalled(flag: Path, number: signal.Signals = signal.SIGINT, *overrides: str) -> Recipe:
    objective = ["objective=test_resume:Signalling", "objective.at=160", f"objective.flag={flag}"]
    rest = [override for override in EVERYTHING if not override.startswith("objective")]
    return tiny("mixture2d-scd", *objective, f"objective.number={int(number)}", *rest, *overrides)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, number: signal.Signals) -> None:
    """Between two checkpoints and two lines of metrics; the end is bit for bit that of a run without a stop."""
    recipe = signalled(tmp_path / "flag", number)
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match=rf"stopped by {number.name} after 192 images.*--resume"):
        trained(recipe, tmp_path / "stopped")
    assert signal.getsignal(number) is before
    trained(recipe, tmp_path / "stopped", resume=True)
    trained(recipe, tmp_path / "whole")
    assert same(tmp_path / "stopped", tmp_path / "whole")
    assert without_times(tmp_path / "stopped") == without_times(tmp_path / "whole")


def test_a_longer_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long = tiny("mixture2d-scd", *EVERYTHING, "optimizer.schedule=constant")
    short = tiny("mixture2d-scd", *EVERYTHING, "optimizer.schedule=constant", "train.total_nimg=150")
    trained(short, tmp_path / "a")
    assert metrics(tmp_path / "a")[-1]["nimg"] == 160  # whole steps
    trained(short, tmp_path / "a", resume=True)
    assert "is finished (160 images); continue it with a larger train.total_nimg" in capsys.readouterr().err
    trained(long, tmp_path / "a", resume=True)
    trained(long, tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "b")


def test_lines_after_the_checkpoint_are_not_repeated(tmp_path: Path) -> None:
    """A killed run has written metrics that its newest checkpoint does not know, the last line but half."""
    recipe = tiny("mixture2d-scd", *EVERYTHING)
    trained(recipe, tmp_path / "a")
    expected = without_times(tmp_path / "a")
    newest = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1]
    newest.unlink()
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('{"nimg": 32')
    trained(recipe, tmp_path / "a", resume=True)
    assert without_times(tmp_path / "a") == expected


def test_a_damaged_checkpoint_falls_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny("mixture2d-scd", *EVERYTHING)
    trained(recipe, tmp_path / "a")
    before = weights(tmp_path / "a")
    newest = sorted((tmp_path / "a" / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    trained(recipe, tmp_path / "a", resume=True)
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "a").items())


def test_resume_without_a_run_begins_one(tmp_path: Path) -> None:
    assert (trained(tiny(), tmp_path / "new", resume=True) / "model.json").exists()


# A changed recipe

SMALL = (
    *("data.n=100", "network.width=16", "network.depth=1", "train.batch=32", "sampling.flow_map_num=0"),
    *("train.log_nimg=64", "train.checkpoint_nimg=128", "train.tensorboard=false", "sampling.grid_nimg=0"),
    "optimizer.schedule=constant",
)
# Fields that the result does not depend on, with another value each.
FREE = (
    *("name=other", "train.log_nimg=32", "train.checkpoint_nimg=32", "train.keep_checkpoints=2"),
    *("train.tensorboard=true", "sampling.grid_nimg=64", "sampling.grid_count=5", "sampling.flow_map_num=10"),
    "ema.snapshot_nimg=32",
)


def go_on(folder: Path, *overrides: str, recipe: str = "mixture2d-scd") -> int:
    """The exit code of the command, which begins a run or goes on with it."""
    line = ["train", recipe, *SMALL, "train.total_nimg=320", *overrides]
    return main([*line, "--out", str(folder), "--resume", "--device", "cpu"])


@pytest.fixture(scope="module")
def half_a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped after 160 of 320 images (not to be written to)."""
    folder = tmp_path_factory.mktemp("half") / "run"
    assert go_on(folder, "train.total_nimg=160") == 0
    return folder


@pytest.fixture
def half(half_a_run: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(half_a_run, tmp_path / "half"))


@pytest.mark.parametrize("change", [*FREE, "train.microbatch=32"])
def test_what_changes_no_result_may_change(
    change: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go_on(half, change) == 0, capsys.readouterr().err
    assert "bit for bit" not in capsys.readouterr().err


def test_changed_fields_take_effect_and_the_result_is_the_same(half: Path, tmp_path: Path) -> None:
    """The card and recipe.json tell of the recipe that the run ended with."""
    assert go_on(half, *FREE) == 0
    assert go_on(tmp_path / "whole") == 0
    assert same(half, tmp_path / "whole")
    assert [line["nimg"] for line in metrics(half)] == [64, 128, 160, 192, 224, 256, 288, 320]
    assert len(list((half / "checkpoints").iterdir())) == 2 and list(half.glob("events.out.*"))
    assert [path.stem for path in sorted((half / "samples").iterdir())] == [
        f"nimg-{nimg:012d}" for nimg in (192, 256, 320)
    ]
    told = json.loads((half / "recipe.json").read_text())
    card = read_card(half)
    assert told["name"] == card.name == "other" and told == card.recipe


def test_the_card_of_a_finished_run_follows_its_recipe(half: Path) -> None:
    before = weights(half)
    assert go_on(half, "train.total_nimg=160", "name=renamed") == 0
    told = json.loads((half / "recipe.json").read_text())
    assert told["name"] == read_card(half).name == "renamed" and told == read_card(half).recipe
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(half).items())


def test_a_run_out_of_memory_goes_on_in_smaller_passes(
    half: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go_on(half, "train.microbatch=8") == 0, capsys.readouterr().err
    told = [line for line in capsys.readouterr().err.splitlines() if "bit for bit" in line]
    assert len(told) == 1 and "train.microbatch" in told[0] and "32" in told[0] and "8" in told[0]
    assert read_card(half).recipe["train"]["microbatch"] == 8
    assert go_on(tmp_path / "whole") == 0
    for one, other in zip(weights(half).values(), weights(tmp_path / "whole").values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_a_target_over_the_batch_keeps_its_microbatch(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stable = ("objective.stable_target=true", "train.total_nimg=64")
    assert go_on(tmp_path / "run", *stable, recipe="mixture2d-sct") == 0
    assert go_on(tmp_path / "run", *stable, "train.microbatch=8", recipe="mixture2d-sct") == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert "'train.microbatch' differs" in told and "32 there, 8 now" in told and "depends" in told


@pytest.mark.parametrize(
    ("change", "old", "new"),
    [
        ("network.width=8", "16", "8"),
        ("optimizer.lr=0.5", "0.0005", "0.5"),
        ("train.seed=3", "0", "3"),
        ("sampling.steps=2", "1", "2"),
        ("network.dropout=0.1", "its default", "0.1"),
        ("objective.warmup=7", "3000", "7"),
    ],
)
def test_what_changes_the_result_is_refused_with_both_values(
    change: str, old: str, new: str, half: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (half / "recipe.json").read_text()
    capsys.readouterr()
    assert go_on(half, change) == 2
    told = capsys.readouterr().err
    key = change.split("=")[0]
    assert f"('{key}' differs: {old} there, {new} now)" in told and told.count("\n") == 1
    assert (half / "recipe.json").read_text() == before


# Folders in use


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    trained(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match="already holds a run: resume it with --resume"):
        trained(tiny(), tmp_path / "run")
    with pytest.raises(UserError, match=r"another recipe \('network.width' differs: 16 there, 8 now\)"):
        trained(tiny("mixture2d-scd", "network.width=8"), tmp_path / "run", resume=True)
    with pytest.raises(
        UserError, match=r"another recipe \('network.dropout' differs: its default there, 0.1 now\)"
    ):
        trained(tiny("mixture2d-scd", "network.dropout=0.1"), tmp_path / "run", resume=True)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no run"):
            trained(tiny(), tmp_path, resume=resume)
    with pytest.raises(UserError, match="is a file, not a folder"):
        trained(tiny(), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_run_under_way_is_locked(tmp_path: Path) -> None:
    with (
        open_run(tmp_path, tiny(), resume=False),
        pytest.raises(UserError, match="in use by another training"),
    ):
        trained(tiny(), tmp_path, resume=True)


def test_a_lock_of_another_process_ends_with_it(tmp_path: Path) -> None:
    """However that ends."""
    script = (
        "import sys, time; from pathlib import Path; from trigflow.system.files import locked\n"
        "with locked(Path(sys.argv[1]), ''): print('held', flush=True); time.sleep(600)"
    )
    path = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match="it is in use"), locked(path, "it is in use"):
            pass
        holder.kill()
        holder.wait()
        with locked(path, "it is in use"):
            pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"):
        trained(tiny(), tmp_path / "run")


def test_no_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails to be written, the run ends with one line, and a later attempt goes on."""
    recipe = tiny("mixture2d-scd", *EVERYTHING)
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 12:
            raise OSError(28, os.strerror(28))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        trained(recipe, tmp_path / "run")
    trained(recipe, tmp_path / "run", resume=True)
    trained(recipe, tmp_path / "whole")
    assert same(tmp_path / "run", tmp_path / "whole")


# kill -9

LONG = ("train.checkpoint_nimg=160", "train.log_nimg=160", "ema.snapshot_nimg=0")


def kill_and_resume(tmp_path: Path, kills: int, total_nimg: int, seed: int) -> None:
    """Kills a training at random moments, goes on each time, and compares the end with a run without a stop."""
    recipe = tiny("mixture2d-scd", *EVERYTHING, *LONG, f"train.total_nimg={total_nimg}")
    moments = random.Random(seed)
    (tmp_path / "recipe.json").write_text(json.dumps(to_json(recipe)))
    script = (
        "import json, sys, torch; torch.set_num_threads(1)\n"
        "from pathlib import Path\n"
        "from trigflow.system.config import validate\n"
        "from trigflow.recipes.schema import Recipe\n"
        "from trigflow.training.loop import train\n"
        "recipe = validate(Recipe, json.loads(Path(sys.argv[1]).read_text()))\n"
        "train(recipe, sys.argv[2], resume=True, device='cpu', progress=False)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "recipe.json"), str(tmp_path / "killed")]
    reached = 0
    for _ in range(kills):
        process = subprocess.Popen(command)
        wait_for(tmp_path / "killed", reached + 1, process)
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        assert process.wait() in (-signal.SIGKILL, 0)  # a busy machine may kill it too late
        reached = newest_nimg(tmp_path / "killed")
    subprocess.run(command, check=True)
    trained(recipe, tmp_path / "whole")
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert without_times(tmp_path / "killed") == without_times(tmp_path / "whole")


def newest_nimg(folder: Path) -> int:
    names = [path.stem for path in folder.glob("checkpoints/nimg-*.safetensors")]
    return max((int(name.removeprefix("nimg-")) for name in names), default=0)


def wait_for(folder: Path, nimg: int, process: subprocess.Popen[bytes]) -> None:
    """Until the run has a checkpoint of nimg images or more."""
    end = time.monotonic() + 120
    while newest_nimg(folder) < nimg and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def test_kill_and_resume(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=2, total_nimg=3_840, seed=0)


@pytest.mark.slow
def test_ten_kills(tmp_path: Path) -> None:
    kill_and_resume(tmp_path, kills=10, total_nimg=64_000, seed=1)


def test_the_command_ends_with_a_message_when_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C through the command: no traceback, a line that says how to go on, and not the code of success."""
    flag = tmp_path / "flag"
    changes = ["data.n=100", "network.width=8", "network.depth=1", "train.batch=32", "train.total_nimg=320"]
    objective = ["objective=test_resume:Signalling", "objective.at=64", f"objective.flag={flag}"]
    code = main(
        [
            "train",
            "mixture2d-scd",
            *changes,
            *objective,
            "train.tensorboard=false",
            "--out",
            str(tmp_path / "r"),
        ]
    )
    shown = capsys.readouterr()
    assert code not in (0, 2)
    assert "add --resume to the same command" in shown.err and "Traceback" not in shown.err


def test_a_finished_run_without_its_model_gets_it(tmp_path: Path) -> None:
    """Killed between the last checkpoint and the model."""
    recipe = recipes.get("digits-teacher", TINY)
    folder = train(recipe, tmp_path / "run", device="cpu", progress=False)
    model = (folder / "model.safetensors").read_bytes()
    for name in ("model.safetensors", "model.json"):
        (folder / name).unlink()
    train(recipe, folder, resume=True, device="cpu", progress=False)
    assert (folder / "model.safetensors").read_bytes() == model and (folder / "model.json").exists()


def test_a_start_that_was_killed_leaves_a_folder_that_can_be_used(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".recipe.json.123.tmp").write_text("{")
    train(recipes.get("digits-teacher", TINY), folder, device="cpu", progress=False)
    assert (folder / "model.json").exists()


# Whole files with other content


def drop(prefix: str) -> Change:
    return lambda tensors, state: [tensors.pop(name) for name in list(tensors) if name.startswith(prefix)]


def resize(prefix: str) -> Change:
    def change(tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
        tensors.update({name: torch.zeros(3, 7) for name in tensors if name.startswith(prefix)})

    return change


FOREIGN: dict[str, Change] = {
    "optimizer of another shape": resize("optimizer/"),
    "no optimizer": drop("optimizer/"),
    "foreign optimizer key": lambda tensors, state: tensors.update({"optimizer/net/99/x": torch.zeros(1)}),
    "EMA of another shape": resize("ema/"),
    "no EMA": drop("ema/"),
    "foreign EMA": lambda tensors, state: tensors.update({"ema/net/0.2/x": torch.zeros(1)}),
    "no generator": drop("rng/"),
    "generator of another shape": resize("rng/"),
    "no nimg": lambda tensors, state: state.pop("nimg"),
    "nimg of text": lambda tensors, state: state.update(nimg="32"),
    "negative nimg": lambda tensors, state: state.update(nimg=-32),
    "no log": lambda tensors, state: state.pop("log"),
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_checkpoint_of_another_run(tmp_path: Path, change: Change) -> None:
    """Its digest is right, but not its content."""
    trained(tiny(), tmp_path / "run")
    newest = sorted((tmp_path / "run" / "checkpoints").iterdir())[-1]
    tensors, state = read_state(newest)
    change(tensors, state)
    write_state(newest, tensors, state)
    with pytest.raises(UserError, match=r"does not belong to this run \(.*another --out"):
        trained(tiny(), tmp_path / "run", resume=True)


def test_damaged_lines_of_metrics_are_dropped(tmp_path: Path) -> None:
    trained(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    before = path.read_bytes()
    damage = b'\xff\xfe\n{"nimg": 1e400}\n' + b"[" * 100_000 + b"\n"
    path.write_bytes(damage + before + damage)
    trained(tiny(), tmp_path / "run", resume=True)
    assert path.read_bytes() == before


def test_a_run_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Fields that its recipe does not know yet have their defaults."""
    trained(tiny(), tmp_path / "run")
    path = tmp_path / "run" / "recipe.json"
    recipe = json.loads(path.read_text())
    del recipe["train"]["keep_checkpoints"], recipe["init"]
    path.write_text(json.dumps(recipe))
    trained(tiny(), tmp_path / "run", resume=True)


def test_a_lock_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write .*\.lock"):
        trained(tiny(), tmp_path / "run")


@pytest.fixture
def in_the_foreground() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background of a shell, which ignores it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.usefixtures("in_the_foreground")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_loop_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_restore", lambda run: signal.raise_signal(number))
        with pytest.raises(KeyboardInterrupt, match=r"lost.*add --resume"):
            trained(tiny(), tmp_path / "run")
    assert signal.getsignal(number) is before
    trained(tiny(), tmp_path / "run", resume=True)


@pytest.mark.parametrize("data", [{}, {"data": torch.zeros(20, 3)}, {"data": torch.zeros(20, 1, 8, 8)}])
def test_samples_of_the_teacher_that_are_no_such_samples_are_made_again(
    tmp_path: Path, teacher_folder: Path, data: dict[str, torch.Tensor]
) -> None:
    """None, of another shape or of another type, in a file whose digest is right."""
    changes = [*TINY, f"teacher={teacher_folder}", "train.synthetic=20"]
    recipe = recipes.get("digits-scd", changes)
    train(recipe, tmp_path / "run", device="cpu", progress=False)
    cache = tmp_path / "run" / "synthetic.safetensors"
    made, state = read_state(cache)
    write_state(cache, data, state)
    train(recipe, tmp_path / "run", resume=True, device="cpu", progress=False)
    assert torch.equal(read_state(cache)[0]["data"], made["data"])


def test_a_second_ctrl_c_does_not_wait_but_a_second_sigterm_is_the_same_request() -> None:
    """Schedulers send SIGTERM to each process, and torchrun, too."""
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_microbatch_of_the_batch_is_none(tmp_path: Path) -> None:
    """Also where the loss depends on the microbatch."""
    short = ["data.n=100", "network.width=8", "network.depth=1", "sampling.flow_map_num=0"]
    small = ["train.total_nimg=32", "train.batch=16", "train.tensorboard=false", *short]
    folder = train(recipes.get("mixture2d-sct", small), tmp_path / "run", device="cpu", progress=False)
    longer = recipes.get("mixture2d-sct", [*small, "train.microbatch=16", "train.total_nimg=48"])
    train(longer, folder, resume=True, device="cpu", progress=False)
    with pytest.raises(UserError, match=r"'train.microbatch' differs: 16 there, 8 now, on which the loss"):
        train(replace(longer, train=replace(longer.train, microbatch=8)), folder, resume=True, device="cpu")


def test_a_recipe_is_needed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the recipe is a str: give a Recipe"):
        train("digits-teacher", tmp_path / "run")  # type: ignore[arg-type]
