"""What `study terms` says: quality of each row by each judge in one and two steps, and what its training takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.metrics import METRICS
from trigflow.tools.studies.ablation_outcome import rows_plot
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.outcome import Outcome, Table, ratio, show, stored
from trigflow.tools.studies.trained import STEPS, Row, Runs

ALL = "all terms"
QUALITY = ("precision", "recall", "label_agreement")
EXPECTATION = (
    "the paper compares sCD, VSD and both together on ImageNet 512x512: VSD alone has the higher precision and the"
    " lower recall, sCD keeps more of the teacher's recall. It does not take the other terms apart."
)


@dataclass(frozen=True)
class RowCost:
    """What a row's training takes.

    Args:
        images: of a training.
        forwards_per_image: forward passes for each, the mean over all steps.
        seconds: for 1,000 images, of each seed.
        parameters: of the trained networks.
        memory: bytes of "weights" (of all networks and averages), "gradients" and "optimizer" states.
    """

    images: int
    forwards_per_image: float
    seconds: list[float]
    parameters: int
    memory: dict[str, int]


def outcome(runs: Runs, rows: Sequence[Row], costs: Sequence[RowCost], budget: float) -> Outcome:
    """Tables and plots.

    Args:
        runs: all done.
        rows: that of all terms first.
        costs: of each row.
        budget: forward passes of each training.
    """
    teacher, recipe = rows[0].teachers[0], runs.students[rows[0].students[0]][0]
    judges = list(_by_judge(runs.bench.folder.read(teacher)))
    scores = {judge: {row.label: _scores(runs, row, judge) for row in rows} for judge in judges}
    return Outcome(
        title=f"Terms: {recipe.name}, one left out or changed at a time",
        expectation=EXPECTATION,
        finding=_finding(scores),
        tables=[*(_quality_table(runs, rows, judge) for judge in judges), _cost_table(rows, costs)],
        plots={f"scores{place}.png": rows_plot(scores[judge], judge) for place, judge in enumerate(judges)},
        notes=_notes(runs, rows, budget),
        numbers={
            "judges": judges,
            "forwards": budget,
            "rows": [
                {
                    "row": row.label,
                    "scores": {
                        judge: {str(n): [stored(one) for one in scores[judge][row.label][n]] for n in STEPS}
                        for judge in judges
                    },
                    "cost": asdict(cost),
                    "runs": row.students,
                }
                for row, cost in zip(rows, costs, strict=True)
            ],
            "cells": runs.cells(),
        },
    )


def _by_judge(cell: Cell) -> dict[str, Any]:
    """Name of a score -> steps -> what was measured."""
    found: dict[str, Any] = cell.get("judges") or {cell["score"]: cell["scores"]}
    return found


def _values(runs: Runs, row: Row, judge: str, steps: int, key: str) -> list[float]:
    """A number for each seed, infinite where the run diverged; none where it does not apply."""
    cells = [runs.bench.folder.read(name) for name in row.students]
    found = [
        [math.inf] if cell["diverged"] else _by_judge(cell)[judge][str(steps)].get(key, []) for cell in cells
    ]
    return [value for of_seed in found for value in of_seed]


def _scores(runs: Runs, row: Row, judge: str) -> dict[int, list[float]]:
    return {steps: _values(runs, row, judge, steps, "scores") for steps in STEPS}


def _quality_table(runs: Runs, rows: Sequence[Row], judge: str) -> Table:
    """Distance, precision, recall and label accuracy in each number of steps; the teacher's in all of them."""
    head = ["terms"]
    for steps in STEPS:
        head += [f"{judge}, {in_steps(steps)}", *(METRICS[name].heading for name in QUALITY)]
    (way,) = _by_judge(runs.bench.folder.read(rows[0].teachers[0]))[judge].values()
    own = [show(way["scores"]), *(show(way.get(f"{name}s", []), METRICS[name].form) for name in QUALITY)]
    table = [head, [f"teacher, {way['nfe']} evaluations", *own * len(STEPS)]]
    for row in rows:
        shown = [row.label]
        for steps in STEPS:
            shown.append(show(_values(runs, row, judge, steps, "scores")))
            for name in QUALITY:
                shown.append(show(_values(runs, row, judge, steps, f"{name}s"), METRICS[name].form))
        table.append(shown)
    return Table(f"Quality by {judge}", table)


def _cost_table(rows: Sequence[Row], costs: Sequence[RowCost]) -> Table:
    table = [
        ["terms", "images", "forward passes per image", "s per 1,000 images", "parameters trained", "MiB"]
    ]
    for row, cost in zip(rows, costs, strict=True):
        counted = [f"{cost.images:,}", f"{cost.forwards_per_image:.2f}", show(cost.seconds)]
        size = sum(cost.memory.values()) / 2**20
        table.append([row.label, *counted, f"{cost.parameters:,}", f"{size:.1f}"])
    return Table("What a training takes", table)


def _finding(scores: dict[str, dict[str, dict[int, list[float]]]]) -> str:
    """Factors over all terms, within each seed."""
    texts = []
    for judge, by_row in scores.items():
        factors = {
            label: [show(ratio(own[steps], by_row[ALL][steps]), "{:.2f}") for steps in STEPS]
            for label, own in by_row.items()
            if label != ALL
        }
        rows = [f"{label} {one} in 1 step, {two} in 2" for label, (one, two) in factors.items()]
        texts.append(f"{judge}: {'; '.join(rows)}")
    return f"distances over those of all terms, by {'. By '.join(texts)}."


def _notes(runs: Runs, rows: Sequence[Row], budget: float) -> list[str]:
    (teacher, _) = next(iter(runs.given.values()))
    return [
        f"{runs.note(len(rows[0].students))} All judges look at the same samples.",
        f"Every row has {budget:,.0f} forward passes of training, to a whole batch: length, warm-up and half-life are"
        f" scaled to them. All are students of {teacher}; the seeds are those of their trainings.",
        "MiB: weights of the trained networks, the teacher, the target network and all averages, gradients and"
        " optimiser states; counted, without activations. Seconds: median over a training's lines of metrics.jsonl,"
        f" with --jobs {runs.bench.jobs}.",
    ]
