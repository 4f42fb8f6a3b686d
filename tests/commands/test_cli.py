"""The command: its flags are frozen, its help shows an example, its exit codes hold."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import trigflow
from trigflow.__main__ import interrupt
from trigflow.commands import cli
from trigflow.system.errors import UserError

# Others rely on these: a change here is a change of the interface.
FLAGS = {
    "demo": {"--out", "--seed", "--device"},
    "list": {"kind"},
    "info": {"model", "--trust-code"},
    "data": {
        *(
            "action",
            "source",
            "overrides",
            "--out",
            "--size",
            "--background",
            "--rgb",
            "--skip-damaged",
            "--resume",
        ),
        *("--vae", "--dtype", "--mean-only", "--batch", "--device"),
    },
    "plan": {
        *("recipe", "overrides", "--gpus", "--memory", "--throughput", "--microbatch", "--checkpointing"),
        *("--trust-code", "--json"),
    },
    "train": {
        *("recipe", "overrides", "--out", "--resume", "--data", "--seed", "--device"),
        *("--parallel", "--checkpointing", "--trust-code"),
    },
    "reconstruct": {"run", "--ema-std", "--nimg", "--out"},
    "sample": {
        *(
            "model",
            "--steps",
            "--num",
            "--out",
            "--labels",
            "--trust-code",
            "--guidance-scale",
            "--guide",
            "--sampler",
            "--seed",
            "--device",
            "--vae",
            "--latents",
            "--precision",
        ),
    },
    "evaluate": {
        *(
            "model",
            "overrides",
            "--steps",
            "--num",
            "--trust-code",
            "--seeds",
            "--features",
            "--teacher",
            "--data",
            "--test-data",
            "--noise-levels",
            "--guidance-scale",
            "--out",
        ),
        *("--resume", "--device", "--guide", "--vae"),
    },
    "study": {
        *("study", "subject", "overrides", "--out", "--seeds", "--num", "--features", "--teacher", "--data"),
        *("--steps", "--guidance-scale", "--shares", "--share", "--jobs", "--device", "--method"),
    },
    "bench": {
        *("model", "overrides", "--random", "--steps", "--batch", "--rounds", "--precision", "--json"),
        *("--trust-code", "--device"),
    },
    "doctor": {"--trust-code", "model", "--shape", "--device"},
    "train-classifier": {
        "data",
        "overrides",
        "--epochs",
        "--network",
        "--augment",
        "--out",
        "--seed",
        "--device",
    },
}


def test_the_flags_are_frozen() -> None:
    found = {
        name: {(action.option_strings or [action.dest])[-1] for action in verb._actions} - {"--help"}
        for name, verb in cli.verbs(cli.build_parser()).items()
    }
    assert found == FLAGS


@pytest.mark.parametrize("name", FLAGS)
def test_help_shows_an_example_that_the_parser_accepts(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main([name, "--help"])
    assert left.value.code == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    example = cli.COMMANDS[name].example
    assert f"example: {example}" in shown
    assert cli.parse(example.split()[1:]).command == name


def test_every_argument_is_explained() -> None:
    for verb in cli.verbs(cli.build_parser()).values():
        assert all(action.help for action in verb._actions)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"trigflow {trigflow.__version__}\n"


def test_overrides_may_stand_anywhere_behind_the_recipe() -> None:
    line = "train digits-scd train.batch=64 --out runs/a network.channels=32 --seed 3 optimizer.lr=1e-4"
    args = cli.parse(line.split())
    assert args.overrides == ["train.batch=64", "network.channels=32", "optimizer.lr=1e-4"]
    assert args.seed == 3


def replace_run(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: argparse.Namespace) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "list", replace(cli.COMMANDS["list"], run=run))


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("two\n lines"), 2, "trigflow: two lines\n"),
        (KeyboardInterrupt(), 130, "trigflow: stopped\n"),
        (OSError(errno.ENOSPC, "full", "runs/a"), 2, "trigflow: 'runs/a': no space left on the device"),
        (MemoryError(), 2, "trigflow: not enough memory: use smaller sizes"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "trigflow: not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 2, "trigflow: not enough memory"),
        (PermissionError(errno.EACCES, "no", "runs/a"), 2, "trigflow: 'runs/a': no permission"),
    ],
)
def test_what_stops_a_command_becomes_one_line_and_an_exit_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace_run(monkeypatch, error)
    assert cli.main(["list"]) == code
    shown = capsys.readouterr()
    assert shown.err.startswith(line)
    assert shown.err.count("\n") == 1
    assert shown.out == ""


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_run(monkeypatch, ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        cli.main(["list"])


def test_debug_shows_where_a_mistake_was_found(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--debug"]):
        assert cli.main([*flags, "train", "nothing", "--out", "x"]) == 2
        errors = capsys.readouterr().err
        assert ("Traceback" in errors) == bool(flags) and errors.splitlines()[-1].startswith(
            "trigflow: unknown"
        )


@pytest.mark.parametrize(
    ("rank", "local_rank", "speaks"), [("1", "1", False), ("zero", "0", True), ("1", None, True)]
)
def test_who_tells_a_mistake(
    rank: str,
    local_rank: str | None,
    speaks: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first of several processes; every process that no launcher has started, whatever its shell's RANK says."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("RANK", rank)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert cli.main(["plan", "nothing"]) == 2
    assert capsys.readouterr().err.count("unknown recipe") == speaks


def test_a_closed_output_is_no_mistake() -> None:
    """As some supervisors close it; what a command writes goes nowhere."""
    command = f"{sys.executable} -m trigflow list models >&-"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_closed_pipe_is_quiet() -> None:
    program = f"{sys.executable} -m trigflow list | true"
    done = subprocess.run(["bash", "-c", program], check=False, capture_output=True, text=True)
    assert done.stderr == ""


def test_python_dash_m_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "trigflow", "smaple"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("trigflow: unknown command 'smaple' (did you mean 'sample'?)")


def test_ctrl_c_during_an_import_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that swallows the exception, as torch does while it imports NumPy, cannot."""
    (tmp_path / "swallows.py").write_text(
        "import signal\n"
        "from trigflow.__main__ import interrupt\n"
        "try:\n"
        "    interrupt(signal.SIGINT, __import__('sys')._getframe())\n"
        "except KeyboardInterrupt:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ended: list[int] = []

    def end(code: int) -> None:
        ended.append(code)
        raise SystemExit

    monkeypatch.setattr(os, "_exit", end)
    with pytest.raises(SystemExit):
        importlib.import_module("swallows")
    assert ended == [130]
    with pytest.raises(KeyboardInterrupt):
        interrupt(signal.SIGINT, sys._getframe())
