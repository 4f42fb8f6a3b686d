"""What `study ablation` says: factors over the baseline, derivative norms over t, norms over the training."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trigflow.evaluation.figures import in_steps
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.outcome import (
    COLOURS,
    Outcome,
    Plot,
    add_legend,
    comparison,
    new_plot,
    plain_numbers,
    plain_ticks,
    ratio,
    show,
    stored,
)
from trigflow.tools.studies.trained import COLUMNS, STEPS, Row, Runs

BASELINE = "baseline: all on"
EXPECTATION = (
    "on ImageNet 512x512 raw tangents are far worse than clipped or normalised ones (figure 5a), and adaptive "
    "weighting helps in 1 and 2 steps (5b); the norm of d_t f blows up with EDM's time transform and Fourier features "
    "of scale 16 and is tame with c_noise = t and a positional embedding (figure 4, diffusion models of CIFAR-10). "
    "The paper has no number for each stabiliser, and none for all off."
)
Norms = Mapping[str, Mapping[str, Sequence[Cell | None]]]


def outcome(runs: Runs, rows: Sequence[Row], norms: Norms, recipe: str) -> Outcome:
    """Tables and plots.

    Args:
        runs: all done.
        rows: the baseline first.
        norms: "teachers" and "students" -> label -> derivative norms of each seed, None where it diverged.
        recipe: name of the student's recipe.
    """
    name, by_column = runs.score_name(), runs.scores(rows)
    ratios = {
        column: [ratio(group, by_column[column][0]) for group in by_column[column]] for column in COLUMNS
    }
    teachers = {row.label: group for row, group in zip(rows, by_column["teacher"], strict=True)}
    scores, factors = (
        {row.label: {n: table[column][k] for column, n in COLUMNS.items()} for k, row in enumerate(rows)}
        for table in (by_column, ratios)
    )
    firsts = [[label, show(group)] for label, group in teachers.items()]
    head, caption = ["setting", f"teacher, {name}"], f"{name}, and its factor over the baseline"
    return Outcome(
        title=f"Ablation: {recipe}, one stabiliser off at a time",
        expectation=EXPECTATION,
        finding=_finding(factors, norms),
        tables=[comparison(caption, head, firsts, by_column, ratios, "factor")],
        plots={
            "scores.png": rows_plot(scores, name),
            "norms-teachers.png": Plot(
                "Teachers: |d_t f| and |grad_x f . dx/dt| over t (after figure 4)",
                _norms_plot(norms["teachers"]),
            ),
            "norms-students.png": Plot("Students: |df/dt| over t", _tangent_plot(norms["students"])),
            "training.png": _training_plot(runs, rows),
        },
        notes=_notes(runs, len(rows[0].students)),
        numbers={
            "score": name,
            "rows": [
                {
                    "row": row.label,
                    "teacher": [stored(one) for one in teachers[row.label]],
                    "scores": {str(n): [stored(one) for one in scores[row.label][n]] for n in STEPS},
                    "factors": {str(n): [stored(one) for one in factors[row.label][n]] for n in STEPS},
                    "runs": row.students,
                }
                for row in rows
            ],
            "norms": norms,
            "cells": runs.cells(),
        },
    )


def _notes(runs: Runs, seeds: int) -> list[str]:
    return [
        f"{runs.note(seeds)} Factor: over the baseline; above 1 the stabiliser helps.",
        "All rows have the same length, learning rate and data but the recipe's own, which has its own rate, time"
        " distribution and embedding. Switches of the network and its time are the teacher's as well.",
        "Norms: root mean square over the elements, median over 256 samples and over the seeds, along the teacher's"
        " velocity, float32.",
    ]


def _finding(factors: Mapping[str, Mapping[int, list[float]]], norms: Norms) -> str:
    texts = [
        f"{label}: {show(groups[1], '{:.2f}')} in 1 step, {show(groups[2], '{:.2f}')} in 2"
        for label, groups in factors.items()
        if label != BASELINE
    ]
    peaks = [f"{label} {_peak(cells)}" for label, cells in norms["teachers"].items()]
    return (
        f"factors over the baseline: {'; '.join(texts)}. Largest |d_t f| of the teachers: {', '.join(peaks)}."
    )


def _peak(cells: Sequence[Cell | None]) -> str:
    return show([max(cell["time"]) for cell in cells if cell])


def rows_plot(scores: Mapping[str, Mapping[int, list[float]]], name: str) -> Plot:
    """A line of points for each row: one for each seed, the median larger."""
    figure, axes = new_plot(name, "", log_y=False)
    figure.set_size_inches(7.5, 0.45 * len(scores) + 1.6)
    for n, colour, shift in ((1, COLOURS[1], -0.12), (2, COLOURS[0], 0.12)):
        for place, groups in enumerate(scores.values()):
            finite = [score for score in groups[n] if math.isfinite(score)]
            axes.plot(finite, [place + shift] * len(finite), "o", color=colour, ms=3, alpha=0.6)
            if len(finite) == len(groups[n]):
                axes.plot([statistics.median(finite)], [place + shift], "|", color=colour, ms=12, mew=2)
        axes.plot([], [], "o", color=colour, label=in_steps(n))
    axes.set_yticks(range(len(scores)), list(scores))
    axes.invert_yaxis()
    plain_numbers(axes.xaxis)
    add_legend(figure)
    return Plot(f"{name} of every run (a bar is the median; what diverged is not drawn)", figure)


def _norms_plot(norms: Mapping[str, Sequence[Cell | None]]) -> Figure:
    figure, axes = new_plot("t", "norm", log_x=False)
    for (label, cells), colour in zip(norms.items(), COLOURS, strict=False):
        _median_line(axes, cells, "time", f"{label}: |d_t f|", colour, "-")
        _median_line(axes, cells, "space", f"{label}: |grad_x f . dx/dt|", colour, ":")
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=8)
    return figure


def _tangent_plot(norms: Mapping[str, Sequence[Cell | None]]) -> Figure:
    figure, axes = new_plot("t", "|df/dt|", log_x=False)
    figure.set_size_inches(7.5, 5.4)
    for place, (label, cells) in enumerate(norms.items()):
        style = ("-", "--", ":")[place // len(COLOURS) % 3]
        _median_line(axes, cells, "tangent", label, COLOURS[place % len(COLOURS)], style)
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=8)
    return figure


def _median_line(
    axes: Axes, cells: Sequence[Cell | None], key: str, label: str, colour: str, style: str
) -> None:
    """The median over the seeds that did not diverge."""
    there = [cell for cell in cells if cell]
    if there:
        medians = [statistics.median(values) for values in zip(*(cell[key] for cell in there), strict=True)]
        axes.plot(there[0]["t"], medians, style, color=colour, label=label)


def _training_plot(runs: Runs, rows: Sequence[Row]) -> Plot:
    """The tangent's norm over the training, of the first seed."""
    figure, axes = new_plot("images", "norm of the tangent, mean over the batch", log_x=False)
    figure.set_size_inches(7.5, 5.4)
    for place, row in enumerate(rows):
        lines: list[dict[str, Any]] = runs.bench.folder.read(row.students[0])["curves"]
        points = [(line["nimg"], line["tangent_norm"]) for line in lines if "tangent_norm" in line]
        style = ("-", "--", ":")[place // len(COLOURS) % 3]
        colour = COLOURS[place % len(COLOURS)]
        axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour, label=row.label, lw=1)
    plain_ticks(axes)
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=8)
    return Plot("The norm of the students' tangents over their training (first seed)", figure)
