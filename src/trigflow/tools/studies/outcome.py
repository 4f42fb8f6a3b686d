"""The result of a study, and its files: study.json with all numbers, tables as Markdown, an HTML page, plots as PNG."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from trigflow.evaluation.page import html_figure, html_page, html_table, markdown_table
from trigflow.models.pictures import png
from trigflow.system.files import write_atomically, write_json

COLOURS = ("#2563a8", "#d1495b", "#2e8b57", "#b8860b", "#7b4fa3", "#777777")
DIVERGED = "diverged"


@dataclass(frozen=True)
class Table:
    """Rows of text; the first is the header."""

    caption: str
    rows: list[list[str]]


@dataclass(frozen=True)
class Plot:
    """A figure with its caption."""

    caption: str
    figure: Figure


@dataclass(frozen=True)
class Outcome:
    """The result of a study.

    Args:
        title: one line.
        expectation: the paper's result, whatever was measured.
        finding: the measured result, in a sentence or two.
        tables: formatted scores.
        plots: file name -> plot.
        notes: how the numbers were measured.
        numbers: all raw numbers as JSON data; scores of diverged runs are None.
    """

    title: str
    expectation: str
    finding: str
    tables: list[Table]
    plots: Mapping[str, Plot]
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """Expectation and finding, each with its label."""
        return [f"Expected: {self.expectation}", f"Found: {self.finding}"]


def write_outcome(outcome: Outcome, about: Mapping[str, Any], folder: Path) -> None:
    """Writes study.md, study.html, the plots and, last, study.json.

    Args:
        outcome: of the study.
        about: study, command, configuration and machine, as JSON data.
        folder: an existing one.

    Raises:
        UserError: the folder cannot be written to.
    """
    pictures = {name: png(plot.figure) for name, plot in outcome.plots.items()}
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_atomically(folder / "study.md", to_markdown(outcome).encode())
    write_atomically(folder / "study.html", to_html(outcome, pictures).encode())
    texts = {"title": outcome.title, "expectation": outcome.expectation, "finding": outcome.finding}
    tables = {table.caption: table.rows for table in outcome.tables}
    told = {**texts, "notes": outcome.notes, "tables": tables}
    write_json(folder / "study.json", {**about, **told, **outcome.numbers})


def to_markdown(outcome: Outcome) -> str:
    """The outcome as Markdown, with links to the plots in the same folder."""
    parts = [f"# {outcome.title}", *outcome.texts()]
    for table in outcome.tables:
        parts += [f"**{table.caption}**", markdown_table(table.rows)]
    parts += [f"![{plot.caption}]({name})" for name, plot in outcome.plots.items()]
    parts += ["\n".join(f"- {note}" for note in outcome.notes)] if outcome.notes else []
    return "\n\n".join(parts) + "\n"


def to_html(outcome: Outcome, pictures: Mapping[str, bytes]) -> str:
    """The outcome as one HTML file, in which the plots are embedded as PNG."""
    parts = [html_table(table.rows, table.caption) for table in outcome.tables]
    parts += [html_figure(outcome.plots[name].caption, content) for name, content in pictures.items()]
    return html_page(outcome.title, outcome.texts(), parts, outcome.notes)


# Numbers


def stored(score: float) -> float | None:
    """A score as JSON data: None for that of a diverged run, which is infinite."""
    return score if math.isfinite(score) else None


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Quotients within each seed; seeds whose divisor is zero or infinite (diverged) are left out."""
    return [one / other for one, other in zip(ours, theirs, strict=True) if other and math.isfinite(other)]


def spread(scores: Sequence[float]) -> dict[str, float | None]:
    """Median, lowest and highest score as JSON data; None for diverged runs, and where there are no scores."""
    if not scores:
        return {"median": None, "lowest": None, "highest": None}
    ends = {"median": statistics.median(scores), "lowest": min(scores), "highest": max(scores)}
    return {name: stored(value) for name, value in ends.items()}


def show(scores: Sequence[float], form: str = "{:.3g}") -> str:
    """Median and range, as "0.079 (0.066 .. 0.083)"; a single number without a range; "-" for no scores."""
    if not scores:
        return "-"
    median, low, high = (
        form.format(value) if math.isfinite(value) else DIVERGED
        for value in (statistics.median(scores), min(scores), max(scores))
    )
    return median if low == high else f"{median} ({low} .. {high})"


def comparison(
    caption: str,
    head: list[str],
    rows: Sequence[list[str]],
    scores: Mapping[str, Sequence[Sequence[float]]],
    ratios: Mapping[str, Sequence[Sequence[float]]],
    word: str = "ratio",
) -> Table:
    """Scores with their ratios, a row for each setting.

    Args:
        caption: of the table.
        head: of the first columns.
        rows: the first cells of each row.
        scores, ratios: column -> row -> a number for each seed.
        word: head of the columns of ratios.
    """
    table = [[*head, *(cell for column in ratios for cell in (column, word))]]
    for place, row in enumerate(rows):
        pairs = [(scores[column][place], ratios[column][place]) for column in ratios]
        table.append([*row, *(cell for one, two in pairs for cell in (show(one), show(two, "{:.2f}")))])
    return Table(caption, table)


# Plots


@dataclass(frozen=True)
class Line:
    """Scores over a quantity.

    Args:
        label: for the legend.
        x: places on the x axis.
        scores: a number for each seed, at each place; infinite where the run diverged.
    """

    label: str
    x: Sequence[float]
    scores: Sequence[Sequence[float]]


def score_plot(score: str, x_label: str, lines: Sequence[Line], ticks: Sequence[float] = ()) -> Plot:
    """Medians with their ranges, on logarithmic axes.

    Args:
        score: its name.
        x_label: name of the quantity on the x axis.
        lines: at most six.
        ticks: places on the x axis to label (default: 1, 2, 5 of each decade).
    """
    figure, axes = new_plot(x_label, score)
    for line, colour in zip(lines, COLOURS, strict=False):
        _add_line(axes, line, colour)
    plain_ticks(axes, ticks)
    if not ticks:
        plain_numbers(axes.xaxis)
    add_legend(figure)
    return Plot(f"{score} over {x_label}, median and range over the seeds", figure)


def new_plot(x_label: str, y_label: str, log_x: bool = True, log_y: bool = True) -> tuple[Figure, Axes]:
    """Empty axes in the style of the reports."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    if log_x:
        axes.set_xscale("log")
    if log_y:
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _add_line(axes: Axes, line: Line, colour: str) -> None:
    """Places without a finite score are left out."""
    finite = [
        (x, [s for s in group if math.isfinite(s)]) for x, group in zip(line.x, line.scores, strict=True)
    ]
    points = [(x, statistics.median(group), group) for x, group in finite if group]
    below = [median - min(group) for _, median, group in points]
    above = [max(group) - median for _, median, group in points]
    x, medians = [x for x, _, _ in points], [median for _, median, _ in points]
    axes.errorbar(x, medians, yerr=[below, above], fmt="o-", color=colour, capsize=3, ms=4, label=line.label)


def plain_ticks(axes: Axes, x: Sequence[float] = ()) -> None:
    """Plain numbers at 1, 2, 5 of each decade of the y axis, and at the given places of the x axis."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.2, high * 1.2)
    plain_numbers(axes.yaxis)
    if x:
        axes.set_xticks(x, [f"{place:g}" for place in x])
        axes.xaxis.set_minor_formatter(NullFormatter())


def plain_numbers(axis: Axis) -> None:
    """Ticks at 1, 2, 5 of each decade of a logarithmic axis, labelled with plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure) -> None:
    """A legend above the axes."""
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize=9)
