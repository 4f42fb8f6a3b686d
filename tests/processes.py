"""Trainings in processes of their own: one alone, or several under torchrun, on the CPU over gloo.

Run as a program, it goes through the jobs of a JSON file, one after the other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trigflow.recipes.schema import Recipe
from trigflow.system.config import to_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """A training: what `trigflow.training.loop.train` is given; `machine` processes are said to be on one machine.

    A single process is given no strategy.
    """

    recipe: Recipe
    out: Path
    resume: bool = False
    checkpointing: bool = False
    parallel: str | None = None
    machine: int | None = None


def start(size: int, jobs: list[Job], float64: bool = False) -> subprocess.Popen[str]:
    """Starts the jobs in `size` processes; 1 is a process without torchrun."""
    words = [
        {
            "recipe": to_json(job.recipe),
            "run_dir": str(job.out),
            "resume": job.resume,
            "checkpointing": job.checkpointing,
            "parallel": job.parallel if size > 1 else None,
            "machine": job.machine,
        }
        for job in jobs
    ]
    return _start(size, {"float64": float64, "jobs": words})


def run_commands(size: int, lines: list[list[str]]) -> None:
    """Runs command lines of trigflow, one after the other; an error fails the test."""
    process = _start(size, {"float64": False, "jobs": lines})
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors


def _start(size: int, content: dict[str, Any]) -> subprocess.Popen[str]:
    with tempfile.NamedTemporaryFile("w", suffix=".json", delete=False) as file:
        json.dump(content, file)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    command = [sys.executable, *(torchrun if size > 1 else []), str(HERE / "processes.py"), file.name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    paths = [str(HERE), str(HERE / "training"), str(HERE.parent / "src"), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    return subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )


def run(size: int, jobs: list[Job], float64: bool = False) -> str:
    """Runs the jobs to their end and returns what they said on stderr; an error fails the test."""
    process = start(size, jobs, float64)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


def _in_float64() -> None:
    """Weights, data, loss and averages; in float32 sums over parts differ by their rounding."""
    import torch

    import trigflow.training.assembly
    from trigflow.data import Dataset

    torch.set_default_dtype(torch.float64)
    encode = Dataset.encode

    def in_float64(self: Dataset, *args: Any) -> Any:
        return encode(self, *args).double()

    Dataset.encode = in_float64  # type: ignore[method-assign]
    trigflow.training.assembly._try_forward = lambda *args: None


def _train(recipe: Recipe, options: dict[str, Any]) -> int:
    from trigflow.training.loop import train

    train(recipe, device="cpu", progress=False, **options)
    return 0


def _main(path: str) -> int:
    import torch

    from trigflow.commands.cli import main, run_and_report_errors
    from trigflow.system.config import validate

    torch.set_num_threads(1)
    given = json.loads(Path(path).read_text())
    if given["float64"]:
        _in_float64()
    for job in given["jobs"]:
        if isinstance(job, list):
            if code := main(job):
                return code
            continue
        if machine := job.pop("machine"):
            os.environ["LOCAL_WORLD_SIZE"] = str(machine)
        recipe = validate(Recipe, job.pop("recipe"))
        code = run_and_report_errors(partial(_train, recipe, job))
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
