"""What a study says: study.json with all numbers, the tables as Markdown, one HTML page, plots as PNG."""

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
    """Text in rows; the first is the head."""

    caption: str
    rows: list[list[str]]


@dataclass(frozen=True)
class Plot:
    """A picture."""

    caption: str
    figure: Figure


@dataclass(frozen=True)
class Outcome:
    """The result of a study.

    Args:
        title: a line.
        expectation: what the paper has, stated whatever came out.
        finding: what came out, in a sentence or two.
        tables: for readers.
        plots: file name -> picture.
        notes: what one must know to read the tables.
        numbers: everything raw, as JSON data; what diverged is None.
    """

    title: str
    expectation: str
    finding: str
    tables: list[Table]
    plots: Mapping[str, Plot]
    notes: list[str] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """Expectation and finding, with their names before them."""
        return [f"Expected: {self.expectation}", f"Found: {self.finding}"]


def write_outcome(outcome: Outcome, about: Mapping[str, Any], folder: Path) -> None:
    """Writes study.md, study.html, the plots and, last, study.json.

    Args:
        outcome: of the study.
        about: study, command, configuration, machine.
        folder: exists.

    Raises:
        UserError: the folder cannot be written.
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
    """With links to the plots beside it."""
    parts = [f"# {outcome.title}", *outcome.texts()]
    for table in outcome.tables:
        parts += [f"**{table.caption}**", markdown_table(table.rows)]
    parts += [f"![{plot.caption}]({name})" for name, plot in outcome.plots.items()]
    parts += ["\n".join(f"- {note}" for note in outcome.notes)] if outcome.notes else []
    return "\n\n".join(parts) + "\n"


def to_html(outcome: Outcome, pictures: Mapping[str, bytes]) -> str:
    """One file: the plots are embedded."""
    parts: list[str] = []
    for table in outcome.tables:
        parts.append(html_table(table.rows, table.caption))
    parts += [html_figure(outcome.plots[name].caption, content) for name, content in pictures.items()]
    return html_page(outcome.title, outcome.texts(), parts, outcome.notes)


# Numbers


def lasting(score: float | None) -> float:
    """A score to compute with: what diverged (None in JSON) is infinitely bad."""
    return math.inf if score is None else score


def stored(score: float) -> float | None:
    """The inverse of `lasting`."""
    return score if math.isfinite(score) else None


def spread(scores: Sequence[float]) -> dict[str, float | None]:
    """Median and ends as JSON data; None for what diverged, and everywhere where there is no number."""
    if not scores:
        return {"median": None, "lowest": None, "highest": None}
    ends = {"median": statistics.median(scores), "lowest": min(scores), "highest": max(scores)}
    return {name: stored(value) for name, value in ends.items()}


def show(scores: Sequence[float], form: str = "{:.3g}") -> str:
    """ "0.079 (0.066 .. 0.083)"; one number stands alone, "-" for none."""
    if not scores:
        return "-"
    median, low, high = (
        form.format(value) if math.isfinite(value) else DIVERGED
        for value in (statistics.median(scores), min(scores), max(scores))
    )
    return median if low == high else f"{median} ({low} .. {high})"


# Plots


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


def add_line(
    axes: Axes, x: Sequence[float], scores: Sequence[Sequence[float]], label: str, colour: str
) -> None:
    """Medians with their ranges; points without a finite score are left out."""
    points = [(place, [s for s in group if math.isfinite(s)]) for place, group in zip(x, scores, strict=True)]
    points = [(place, group) for place, group in points if group]
    medians = [statistics.median(group) for _, group in points]
    below = [median - min(group) for median, (_, group) in zip(medians, points, strict=True)]
    above = [max(group) - median for median, (_, group) in zip(medians, points, strict=True)]
    places = [place for place, _ in points]
    axes.errorbar(places, medians, yerr=[below, above], fmt="o-", color=colour, capsize=3, ms=4, label=label)


def plain_ticks(axes: Axes, x: Sequence[float] = ()) -> None:
    """Plain numbers at 1, 2, 5 of each decade upwards; at the given places to the right, if any."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.2, high * 1.2)
    plain_numbers(axes.yaxis)
    if x:
        axes.set_xticks(x, [f"{place:g}" for place in x])
        axes.xaxis.set_minor_formatter(NullFormatter())


def plain_numbers(axis: Axis) -> None:
    """1, 2, 5 of each decade, written out."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def add_legend(figure: Figure) -> None:
    """Above the axes."""
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize=9)
