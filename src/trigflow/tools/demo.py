"""The demo: from nothing to handwritten digits in one and two steps, in about five minutes on two cores.

Each part writes its result when it is complete, so the same command resumes an interrupted demo.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from trigflow import recipes
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.report import to_markdown, write_report
from trigflow.models.model import Model, load
from trigflow.models.pictures import panels, png
from trigflow.system.config import first_difference
from trigflow.system.errors import UserError
from trigflow.system.files import make_folder, must_be_folder, read_json, write_atomically, write_json
from trigflow.tools import diagram
from trigflow.training.loop import train

STATE = "demo.json"
HONESTY = (
    "This student was trained for a few minutes, to show the way from nothing to images. The student that comes with "
    "the package was trained for longer and is better: trigflow evaluate digits --out report"
)


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does: what fits into five minutes.

    Args:
        teacher: overrides of the recipe digits-teacher.
        student: overrides of the recipe digits-scd.
        num: samples for each score.
        seeds: repetitions of each score.
        steps: of the student.
    """

    teacher: Sequence[str] = ("train.total_nimg=512000", "sampling.grid_nimg=0")
    student: Sequence[str] = (
        "train.total_nimg=512000",
        "train.synthetic=10000",
        "objective.warmup=128000",
        "sampling.grid_nimg=0",
    )
    num: int = 2000
    seeds: int = 1
    steps: Sequence[int] = (1, 2, 4)


def run(
    out: Path, device: str = "auto", seed: int = 0, plan: DemoSettings | None = None, progress: bool = True
) -> None:
    """Trains a teacher and its student, scores both, draws them.

    Args:
        out: folder to write: teacher/, student/, report/, samples.png, path.png.
        device: where to compute.
        seed: of both trainings and of the samples.
        plan: how much to do.
        progress: show bars on stderr.

    Raises:
        UserError: the folder holds something else, or the demo of another seed; no space, no permission.
    """
    plan = plan or DemoSettings()
    if not _begin(out, seed, plan):
        print(
            f"{out} holds a finished demo, see {out}/report/report.html: for a new one choose another --out"
        )
        return
    start = time.perf_counter()
    teacher = _train(
        "digits-teacher", out / "teacher", [*plan.teacher, f"train.seed={seed}"], device, progress
    )
    overrides = [*plan.student, f"train.seed={seed}", f"teacher={out / 'teacher'}"]
    student = _train("digits-scd", out / "student", overrides, device, progress)

    print(f"drawing, and scoring {plan.num} samples of each")
    samples = _samples(teacher, student, plan, seed)
    write_atomically(out / "samples.png", png(panels(samples)))
    diagram.draw(trace_paths(teacher, student, seed), out / "path.png")
    scores = evaluate(
        student, steps=plan.steps, num=plan.num, seeds=plan.seeds, teacher=teacher, progress=progress
    )
    scores["notes"] = [HONESTY, *scores["notes"]]
    write_report(scores, samples, out / "report")
    print(to_markdown(scores))
    write_json(out / STATE, _state(seed, plan) | {"finished": True})
    minutes = (time.perf_counter() - start) / 60
    print(f"done in {minutes:.1f} minutes: {out}/report/report.html, {out}/samples.png, {out}/path.png")


def trace_paths(teacher: Model, student: Model, seed: int = 0, num: int = 10) -> diagram.Paths:
    """The teacher's paths from a few noises, and the student's predictions of x_0 from every point of them."""
    path = teacher.trajectory(num, seed=seed)
    times = path.ts.tolist()
    predictions = [
        student.predict_x_0(x_t, t, path.labels) for x_t, t in zip(path.states, times, strict=True)
    ]
    return diagram.Paths(
        ts=path.ts,
        states=path.states,
        predictions=torch.stack(predictions),
        pictures=torch.stack([teacher.codec.decode(x_t) for x_t in path.states]),
        prediction_pictures=torch.stack([student.codec.decode(x_0) for x_0 in predictions]),
        nfe=path.nfe,
    )


def _state(seed: int, plan: DemoSettings) -> dict[str, object]:
    return {"seed": seed, "teacher": list(plan.teacher), "student": list(plan.student), "num": plan.num}


def _begin(out: Path, seed: int, plan: DemoSettings) -> bool:
    """Whether there is something to do; makes the folder where it is new."""
    must_be_folder(out)
    if not (out / STATE).exists():
        if out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty and holds no demo: choose another --out")
        make_folder(out)
        write_json(out / STATE, _state(seed, plan) | {"finished": False})
        return True
    stored = read_json(out / STATE)
    if not isinstance(stored, dict):
        raise UserError(f"{out / STATE} is damaged: it does not hold a demo; choose another --out")
    finished = stored.pop("finished", False)
    if key := first_difference(stored, _state(seed, plan)):
        raise UserError(f"{out} holds another demo ('{key}' differs): choose another --out")
    return not finished


def _train(name: str, folder: Path, overrides: Sequence[str], device: str, progress: bool) -> Model:
    print(f"training {name} in {folder}")
    try:
        train(recipes.get(name, overrides), folder, resume=True, device=device, progress=progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("stopped, everything is saved: run the same command to resume") from None
    return replace(load(folder, device), name=f"demo {folder.name}")


def _samples(
    teacher: Model, student: Model, plan: DemoSettings, seed: int, num: int = 50
) -> dict[str, Tensor]:
    """The same noises and labels by the student in each number of steps, and by the teacher."""
    samples = {f"student, {in_steps(n)}": student.sample(num, n, seed=seed) for n in plan.steps}
    counter = teacher.counter()
    own = torch.cat(list(teacher.sample_batches(num, teacher.plan(), seed=seed, counter=counter)))
    return samples | {f"teacher, {counter.nfe} evaluations": own}
