"""`study scaling`: teachers and students of four sizes over 8x in parameters: does the ratio of their scores stay?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from trigflow.system.errors import UserError, did_you_mean
from trigflow.tools.studies.outcome import (
    Line,
    Outcome,
    Table,
    comparison,
    ratio,
    score_plot,
    show,
    spread,
    stored,
)
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.trained import (
    COLUMNS,
    Pair,
    Row,
    Runs,
    TrainingSettings,
    check_feature_name,
    known,
)

EXPECTATION = (
    "the ratio of sCD to its own teacher is the same at every size, so both fall with the same slope. ImageNet "
    "512x512, 5.4x in parameters (tables 6 and 8): 2 steps 1.09, 1.13, 1.09, 1.07, 1.09; 1 step 1.34, "
    "1.38, 1.36, 1.33, 1.32."
)


@dataclass(frozen=True)
class Sizes:
    """The length of the trainings on a data set, and the networks.

    Args:
        teacher: overrides of the teacher's recipe.
        students: method -> overrides of the student's; a method that is not here keeps its recipe's length.
        networks: overrides for each size, the smallest first.
    """

    teacher: tuple[str, ...]
    networks: tuple[tuple[str, ...], ...]
    students: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def _mlps(*widths: int) -> tuple[tuple[str, ...], ...]:
    """Of the shape of the recipes of digits: hidden as wide as the width, the embedding a third of it."""
    return tuple(
        (f"network.width={width}", f"network.hidden={width}", f"network.emb_channels={width // 3}")
        for width in widths
    )


def _unets(*channels: int) -> tuple[tuple[str, ...], ...]:
    return tuple((f"network.channels={size}", f"network.emb_channels={3 * size}") for size in channels)


# Of score distillation on images: a third of the recipe, with its warm-up nearer to the start of the run.
_SHORT_VSD = ("train.total_nimg=256000", "objective.warmup=[[64000,0.5]]")
# Parameters over 8x; trainings are a part of the recipes', so three seeds of digits take about 45 minutes on two cores.
SIZES = {
    "digits": Sizes(
        teacher=(),
        students={"scd": ("train.total_nimg=3072000", "train.synthetic=20000", "objective.warmup=512000")},
        networks=_mlps(128, 184, 264, 384),
    ),
    "mixture2d": Sizes(
        teacher=("train.total_nimg=2560000",),
        students={"scd": ("train.total_nimg=2560000", "objective.warmup=1500", "sampling.flow_map_num=0")},
        networks=tuple((f"network.width={width}",) for width in (48, 68, 96, 144)),
    ),
    "mnist": Sizes(
        teacher=("train.total_nimg=1536000",),
        students={
            "scd": ("train.total_nimg=768000", "objective.warmup=[[384000,0.5]]"),
            "scd-vsd": _SHORT_VSD,
        },
        networks=_unets(16, 24, 32, 48),
    ),
    "cifar10-small": Sizes(teacher=(), students={"scd-vsd": _SHORT_VSD}, networks=_unets(16, 24, 32, 48)),
}


@dataclass(frozen=True)
class Scaling(TrainingSettings):
    """Teacher and student at four sizes over 8x in parameters: ratio per size, and slopes. Takes data.

    Args: see `TrainingSettings`, and
        method: how the students are distilled: their recipe is {data}-{method}.
    """

    name: ClassVar[str] = "scaling"
    method: str = "scd"

    def _pairs(self) -> list[Pair]:
        known(self.data, self.method)
        if self.data not in SIZES:
            raise UserError(
                f"study scaling has no sizes for data '{self.data}'{did_you_mean(self.data, SIZES)}; "
                f"there are: {', '.join(SIZES)}"
            )
        sizes = SIZES[self.data]
        base = Pair(self.data, sizes.teacher, sizes.students.get(self.method, ()), self.method)
        base = base.changed(self.overrides)
        return [base.changed(network) for network in sizes.networks]

    def plan(self) -> dict[str, Any]:
        check_feature_name(self.features)
        return {"sizes": [pair.check() for pair in self._pairs()]}

    def measure(self, bench: StudyContext) -> Outcome:
        runs = self.runs(bench)
        rows = [
            runs.add_row(f"size{size}", pair, self.seeds, f"size{size}", f"size{size}")
            for size, pair in enumerate(self._pairs())
        ]
        runs.do()
        return _outcome(runs, rows)


Scores = Mapping[
    str, Sequence[Sequence[float]]
]  # "teacher", "1 step", "2 steps" -> size -> a number for each seed


def _outcome(runs: Runs, rows: Sequence[Row]) -> Outcome:
    name, seeds = runs.score_name(), len(rows[0].students)
    scores = runs.scores(rows)
    params = [_parameters(runs, row) for row in rows]
    ratios = {
        column: [ratio(*pair) for pair in zip(scores[column], scores["teacher"], strict=True)]
        for column in COLUMNS
    }
    slopes = {role: [s for s in slopes_of(params, scores[role]) if s is not None] for role in scores}
    gaps = {column: _gaps(params, scores, column) for column in COLUMNS}
    recipe = runs.students[rows[0].students[0]][0].name
    known_params = [count for count in params if count] or [1]
    sizes = [
        [f"{count:,}" if count else "-", show(group)]
        for count, group in zip(params, scores["teacher"], strict=True)
    ]
    return Outcome(
        title=f"Scaling: {recipe} and its teacher over {max(known_params) / min(known_params):.1f}x in parameters",
        expectation=EXPECTATION,
        finding=_finding(ratios, slopes, gaps, name),
        tables=[
            comparison(
                f"{name} and its ratio to the teacher's at each size",
                ["parameters", f"teacher, {name}"],
                sizes,
                scores,
                ratios,
            ),
            _slopes_table(slopes, gaps, name),
        ],
        plots={
            "scaling.png": score_plot(
                name,
                "parameters",
                [
                    Line(role if role == "teacher" else f"student, {role}", params, groups)
                    for role, groups in scores.items()
                ],
            )
        },
        notes=[
            f"{runs.note(seeds)} Each seed has its own teacher and student.",
            f"Slope: least squares of log {name} against log parameters within each seed, without seeds in which a run"
            " diverged. All sizes are trained on equally many images, at the recipe's learning rates.",
        ],
        numbers={
            "score": name,
            "parameters": params,
            "scores": {
                role: [[stored(s) for s in group] for group in groups] for role, groups in scores.items()
            },
            "ratios": {role: [spread(group) for group in groups] for role, groups in ratios.items()},
            "slopes": slopes,
            "slope_differences": gaps,
            "cells": runs.cells(),
        },
    )


def _parameters(runs: Runs, row: Row) -> int:
    """Of its teachers; 0 where all of them diverged."""
    counts = [runs.bench.folder.read(name).get("params") for name in row.teachers]
    return next((count for count in counts if count), 0)


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least-squares slope of log y over log x; None where a number is not finite and positive, or all x are equal."""
    if not all(0 < value < math.inf for value in (*x, *y)) or len(set(x)) < 2:
        return None
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(log_x) / len(x), sum(log_y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in log_x)


def slopes_of(params: Sequence[float], scores: Sequence[Sequence[float]]) -> list[float | None]:
    """The slope for each seed; scores: size -> a score for each seed."""
    return [slope(params, of_seed) for of_seed in zip(*scores, strict=True)]


def _gaps(params: Sequence[float], scores: Scores, column: str) -> list[float]:
    """The student's slope minus its teacher's, within each seed."""
    pairs = zip(slopes_of(params, scores[column]), slopes_of(params, scores["teacher"]), strict=True)
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def _slopes_table(slopes: dict[str, list[float]], gaps: dict[str, list[float]], name: str) -> Table:
    rows = [["model", "slope", "minus the teacher's"]]
    for role in slopes:
        rows.append([role, show(slopes[role], "{:.2f}"), show(gaps.get(role, []), "{:+.2f}")])
    return Table(f"Slope of log {name} over log parameters", rows)


def _finding(
    ratios: dict[str, list[list[float]]],
    slopes: dict[str, list[float]],
    gaps: dict[str, list[float]],
    name: str,
) -> str:
    texts = []
    for role, groups in ratios.items():
        medians = [spread(group)["median"] for group in groups]
        shown = ", ".join("diverged" if one is None else f"{one:.2f}" for one in medians)
        texts.append(
            f"{role}: ratios {shown}, slope {show(slopes[role], '{:.2f}')}, "
            f"{show(gaps[role], '{:+.2f}')} to the teacher's"
        )
    return f"teacher: slope {show(slopes['teacher'], '{:.2f}')} of log {name}; " + "; ".join(texts) + "."
