"""The plots of a report: samples side by side, quality against compute and steps, and what a sample takes in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from trigflow.models.pictures import panels, png
from trigflow.system.numbers import count_of

Report = Mapping[str, Any]

TEACHER_COLOUR, STUDENT_COLOUR, REAL_COLOUR = "#2563a8", "#d1495b", "#777777"

# What each file shows, in the order of the report.
CAPTIONS = {
    "samples.png": "Samples from the same noises and labels: the same place is the same noise.",
    "nearest.png": "Samples (above), and the training image nearest to each (below) in the main judge's features.",
    "fd-compute.png": "Quality against effective sampling compute (billions of parameters x evaluations).",
    "fd-steps.png": "Quality against sampling steps.",
    "latency.png": "Time of a sample: in a batch, and alone (a whole call for one sample).",
}


def in_steps(steps: int) -> str:
    """ "1 step", "2 steps"."""
    return count_of(steps, "step")


def draw_pictures(
    report: Report, samples: Mapping[str, Tensor], nearest: Mapping[str, Tensor] | None = None
) -> dict[str, bytes]:
    """File name -> PNG; `nearest` has two equal rows of images for each name."""
    pictures = {"samples.png": png(panels(samples))} if samples else {}
    if nearest:
        pictures["nearest.png"] = png(panels(nearest, len(next(iter(nearest.values()))) // 2))
    if report["students"]:
        pictures["fd-compute.png"] = png(_fd_against_compute(report))
        pictures["fd-steps.png"] = png(_fd_against_steps(report))
    pictures["latency.png"] = png(_latency(report))
    return pictures


def _fd_against_compute(report: Report) -> Figure:
    figure, axes = _plot(report, "effective sampling compute (billions of parameters x NFE)")
    for row in report["teachers"]:
        _points(axes, [row], "esc", TEACHER_COLOUR, f"{row['name']}, {row['nfe']} NFE")
    _students(axes, report, "esc")
    axes.set_xscale("log")
    axes.set_xmargin(0.1)
    return _finish(figure, axes)


def _fd_against_steps(report: Report) -> Figure:
    figure, axes = _plot(report, "sampling steps")
    for row in report["teachers"]:
        axes.axhline(row["fd"], color=TEACHER_COLOUR, label=f"{row['name']}, {row['nfe']} NFE")
        axes.axhspan(*row["fd_range"], color=TEACHER_COLOUR, alpha=0.15, lw=0)
    _students(axes, report, "steps")
    axes.set_xscale("log", base=2)
    steps = sorted({row["steps"] for row in report["students"]})
    axes.set_xticks(steps, [str(step) for step in steps])
    return _finish(figure, axes)


def _plot(report: Report, label: str) -> tuple[Figure, Axes]:
    """An empty plot with the lines below which a score cannot be told from the data's own scatter."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    real, test = report["real_vs_real"], report.get("real_test")
    axes.axhline(
        real["fd"], color=REAL_COLOUR, ls="--", label=f"two halves of the real data ({real['num']} each)"
    )
    if test:
        axes.axhline(test["fd"], color=REAL_COLOUR, ls=":", label=f"held-out real data ({test['num']})")
    axes.set_xlabel(label)
    axes.set_ylabel(f"{report['score']}, n = {report['num_samples']}")
    axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> Figure:
    """Plain numbers at 1, 2, 5 of each decade, and a range wide enough to hold one of them; the legend above all."""
    low, high = axes.get_ylim()
    axes.set_ylim(low / 1.3, high * 1.3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    figure.legend(loc="outside upper center", frameon=False, ncols=2, fontsize=9)
    return figure


def _students(axes: Axes, report: Report, key: str) -> None:
    """A line for each method, labelled with its numbers of steps."""
    for method in dict.fromkeys(row["method"] for row in report["students"]):
        rows = [row for row in report["students"] if row["method"] == method]
        _points(
            axes, rows, key, STUDENT_COLOUR, f"{method}: {', '.join(str(row['steps']) for row in rows)} steps"
        )


def _points(axes: Axes, rows: Sequence[Mapping[str, Any]], key: str, colour: str, label: str) -> None:
    fd = [row["fd"] for row in rows]
    below = [row["fd"] - row["fd_range"][0] for row in rows]
    above = [row["fd_range"][1] - row["fd"] for row in rows]
    x = [row[key] for row in rows]
    for row in rows:
        place = (row[key], row["fd"])
        axes.annotate(
            in_steps(row["steps"]), place, (5, 5), textcoords="offset points", ha="left", fontsize=8
        )
    axes.errorbar(x, fd, yerr=[below, above], fmt="o-", color=colour, capsize=3, ms=5, label=label)


def _latency(report: Report) -> Figure:
    """Two bars for each model, on one scale, with their numbers: milliseconds a sample."""
    rows = [*report["teachers"], *report["students"]]
    figure = Figure(figsize=(6.4, 0.7 + 0.55 * len(rows)), layout="constrained")
    axes = figure.subplots()
    batch = report["timing"]["batch"]
    kinds = (("seconds_per_sample", f"in a batch of {batch}", 1.0), ("latency_seconds", "alone", 0.45))
    for place, (key, label, alpha) in zip((-0.19, 0.19), kinds, strict=True):
        times = [1000 * row[key] for row in rows]
        colours = [STUDENT_COLOUR if "fd_ratio" in row else TEACHER_COLOUR for row in rows]
        bars = axes.barh([y + place for y in range(len(rows))], times, 0.36, color=colours, alpha=alpha)
        axes.bar_label(bars, [f"{time:.3g} ms {label}" for time in times], padding=3, fontsize=8)
    axes.set_yticks(range(len(rows)), [f"{row['name']}, {in_steps(row['steps'])}" for row in rows])
    axes.invert_yaxis()
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 2, high * 6)  # room for the numbers
    axes.set_xlabel("milliseconds a sample")
    axes.spines[["top", "right"]].set_visible(False)
    return figure
