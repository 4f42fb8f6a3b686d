"""`study scaling`: teachers and students of four sizes over 8x in parameters: does the ratio of their scores stay?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from trigflow.system.errors import UserError, did_you_mean
from trigflow.tools.studies.outcome import (
    COLOURS,
    Outcome,
    Plot,
    Table,
    add_legend,
    add_line,
    new_plot,
    plain_ticks,
    show,
    spread,
    stored,
)
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.trained import Pair, Runs, check_feature_name, known

EXPECTATION = (
    "the ratio of sCD to its own teacher is the same at every size, so both fall with the same slope. ImageNet "
    "512x512, 5.4x in parameters (tables 6 and 8): 2 steps 1.09, 1.13, 1.09, 1.07, 1.09; 1 step 1.34, "
    "1.38, 1.36, 1.33, 1.32."
)


@dataclass(frozen=True)
class Sizes:
    """How much is trained on a data set, and the networks.

    Args:
        teacher, student: overrides of the recipes.
        networks: overrides for each size, the smallest first.
    """

    teacher: tuple[str, ...]
    student: tuple[str, ...]
    networks: tuple[tuple[str, ...], ...]


def _mlps(*widths: int) -> tuple[tuple[str, ...], ...]:
    """Of the shape of the recipes of digits: hidden as wide as the width, the embedding a third of it."""
    return tuple(
        (f"network.width={width}", f"network.hidden={width}", f"network.emb_channels={width // 3}")
        for width in widths
    )


def _unets(*channels: int) -> tuple[tuple[str, ...], ...]:
    return tuple((f"network.channels={size}", f"network.emb_channels={3 * size}") for size in channels)


# Parameters over 8x; trainings are a part of the recipes', so three seeds of digits take about 45 minutes on two cores.
SIZES = {
    "digits": Sizes(
        teacher=(),
        student=("train.total_nimg=3072000", "train.synthetic=20000", "objective.warmup=512000"),
        networks=_mlps(128, 184, 264, 384),
    ),
    "mixture2d": Sizes(
        teacher=("train.total_nimg=2560000",),
        student=("train.total_nimg=2560000", "objective.warmup=1500", "sampling.flow_map_num=0"),
        networks=tuple((f"network.width={width}",) for width in (48, 68, 96, 144)),
    ),
    "mnist": Sizes(
        teacher=("train.total_nimg=1536000",),
        student=("train.total_nimg=768000", "objective.warmup=[[384000,0.5]]"),
        networks=_unets(16, 24, 32, 48),
    ),
    "cifar10-small": Sizes(teacher=(), student=(), networks=_unets(16, 24, 32, 48)),
}


@dataclass(frozen=True)
class Scaling:
    """Teacher and student at four sizes over 8x in parameters: ratio per size, and slopes: data in.

    Args:
        data: prefix of the recipes {data}-teacher and {data}-scd.
        overrides: `key=value` for both recipes, `teacher.key=value`, `student.key=value`.
        features: as in `load_features` (default: the shipped classifier for digits and MNIST, else pixels).
        num: samples of each score.
        seeds: trainings of each size.
    """

    name: ClassVar[str] = "scaling"
    data: str
    overrides: tuple[str, ...] = ()
    features: str | None = None
    num: int = 5000
    seeds: int = 3

    def _pairs(self) -> list[Pair]:
        known(self.data, "teacher")
        if self.data not in SIZES:
            raise UserError(
                f"study scaling has no sizes for data '{self.data}'{did_you_mean(self.data, SIZES)}; "
                f"there are: {', '.join(SIZES)}"
            )
        sizes = SIZES[self.data]
        base = Pair(self.data, sizes.teacher, sizes.student).changed(self.overrides)
        return [base.changed(network) for network in sizes.networks]

    def plan(self) -> dict[str, Any]:
        check_feature_name(self.features)
        return {"sizes": [pair.check() for pair in self._pairs()]}

    def measure(self, bench: StudyContext) -> Outcome:
        runs = Runs(bench, self.num, self.features)
        names = []
        for size, pair in enumerate(self._pairs()):
            for seed in range(self.seeds):
                teacher = runs.add_teacher(f"size{size}", pair, seed)
                names.append((size, seed, teacher, runs.add_student(f"size{size}", pair, seed, teacher)))
        runs.do()
        return outcome(runs, names, self.num)


ROLES = ("teacher", "1 step", "2 steps")


def outcome(runs: Runs, names: Sequence[tuple[int, int, str, str]], num: int) -> Outcome:
    """Tables, plot and slopes.

    Args:
        runs: all done.
        names: (size, seed, name of the teacher, name of its student), sizes and seeds in order.
        num: samples of each score.
    """
    name, seeds = runs.score_name(), len({seed for _, seed, _, _ in names})
    sizes = len(names) // seeds
    scores = {role: [[0.0] * seeds for _ in range(sizes)] for role in ROLES}
    params = [0] * sizes
    for size, seed, teacher, student in names:
        params[size] = parameters(runs, teacher) or params[size]
        scores["teacher"][size][seed] = runs.score(teacher)
        scores["1 step"][size][seed] = runs.score(student, 1)
        scores["2 steps"][size][seed] = runs.score(student, 2)
    ratios = {
        role: [ratio(*pair) for pair in zip(scores[role], scores["teacher"], strict=True)]
        for role in ROLES[1:]
    }
    slopes = {role: [s for s in slopes_of(params, scores[role]) if s is not None] for role in ROLES}
    recipe = runs.students[names[0][3]][0].name
    there = [count for count in params if count] or [1]  # of a size whose teachers all diverged there is none
    gaps = {role: _gaps(params, scores, role) for role in ROLES[1:]}
    return Outcome(
        title=f"Scaling: {recipe} and its teacher over {max(there) / min(there):.1f}x in parameters",
        expectation=EXPECTATION,
        finding=_finding(ratios, slopes, gaps, name),
        tables=[_sizes_table(params, scores, ratios, name), _slopes_table(slopes, gaps, name)],
        plots={"scaling.png": _plot(params, scores, name)},
        notes=[
            f"{name} of {num} samples; median over {seeds} seeds, each with its own teacher and student (range); ratios"
            " within each seed. Smaller is better.",
            f"Slope: least squares of log {name} against log parameters within each seed; a seed in which a run"
            " diverged has none. All sizes are trained on equally many images, at the recipe's learning rates.",
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


def parameters(runs: Runs, name: str) -> int | None:
    """Of a trained network; None where it diverged."""
    return runs.bench.folder.read(name).get("params")


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Within each seed; where the other has diverged, or is zero, there is none."""
    return [one / other for one, other in zip(ours, theirs, strict=True) if other and math.isfinite(other)]


def slope(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Least squares of log y against log x; None where one of them is not finite and positive, or all x are equal."""
    if not all(0 < value < math.inf for value in (*x, *y)) or len(set(x)) < 2:
        return None
    log_x, log_y = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_x, mean_y = sum(log_x) / len(x), sum(log_y) / len(y)
    products = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return products / sum((a - mean_x) ** 2 for a in log_x)


def slopes_of(params: Sequence[float], scores: Sequence[Sequence[float]]) -> list[float | None]:
    """One for each seed; scores of each size for each seed."""
    return [slope(params, of_seed) for of_seed in zip(*scores, strict=True)]


def _gaps(params: Sequence[float], scores: dict[str, list[list[float]]], role: str) -> list[float]:
    """Student's slope less its teacher's, within each seed."""
    pairs = zip(slopes_of(params, scores[role]), slopes_of(params, scores["teacher"]), strict=True)
    return [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]


def _sizes_table(
    params: list[int], scores: dict[str, list[list[float]]], ratios: dict[str, list[list[float]]], name: str
) -> Table:
    rows = [["parameters", f"teacher, {name}", "1 step", "ratio", "2 steps", "ratio"]]
    for size, count in enumerate(params):
        row = [f"{count:,}" if count else "-", show(scores["teacher"][size])]
        for role in ROLES[1:]:
            row += [show(scores[role][size]), show(ratios[role][size], "{:.2f}")]
        rows.append(row)
    return Table(f"{name} and its ratio to the teacher's at each size", rows)


def _slopes_table(slopes: dict[str, list[float]], gaps: dict[str, list[float]], name: str) -> Table:
    rows = [["model", "slope", "less the teacher's"]]
    for role in ROLES:
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


def _plot(params: list[int], scores: dict[str, list[list[float]]], name: str) -> Plot:
    figure, axes = new_plot("parameters", name)
    for role, colour in zip(ROLES, COLOURS, strict=False):
        add_line(axes, params, scores[role], role if role == "teacher" else f"student, {role}", colour)
    plain_ticks(axes)
    add_legend(figure)
    return Plot(f"{name} against parameters, median and range over the seeds", figure)
