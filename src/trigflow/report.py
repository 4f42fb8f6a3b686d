"""report.json as something to read: Markdown, and one HTML file with its pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from trigflow.files import make_folder, write_atomically, write_json
from trigflow.pictures import panels, png

Report = Mapping[str, Any]
Row = list[str]

TEACHER_COLOUR, STUDENT_COLOUR, REAL_COLOUR = "#2563a8", "#d1495b", "#777777"

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2430; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: 0.92rem; }
th, td { padding: 0.35rem 0.6rem; text-align: right; border-bottom: 1px solid #d5dbe3; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.wide { overflow-x: auto; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #52606d; font-size: 0.92rem; }
"""


def write_report(report: Report, samples: Mapping[str, Tensor], folder: Path) -> None:
    """Writes report.md, report.html, their pictures and, last, report.json, each atomically.

    Args:
        report: what `evaluate` measured.
        samples: name -> samples as stored, from equal noises.
        folder: made if it is not there; former reports in it are replaced.

    Raises:
        UserError: the folder cannot be made or written.
    """
    make_folder(folder)
    pictures = draw_pictures(report, samples)
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_atomically(folder / "report.md", to_markdown(report, list(pictures)).encode())
    write_atomically(folder / "report.html", to_html(report, pictures).encode())
    write_json(folder / "report.json", dict(report))


# Text

CAPTIONS = {
    "samples.png": "Samples from the same noises and labels: the same place is the same noise.",
    "fd-compute.png": "Quality against effective sampling compute (billions of parameters x evaluations).",
    "fd-steps.png": "Quality against sampling steps.",
}


def headline(report: Report) -> str:
    """One sentence: the student with the most steps up to two, beside its teacher."""
    score, num = report["score"], report["num_samples"]
    setting = (
        f"{score} of {num} samples, median of {report['seeds']} seed{'s' if report['seeds'] > 1 else ''}"
    )
    few = [row for row in report["students"] if row["steps"] <= 2]
    if not few:
        row = (report["students"] or report["teachers"])[-1]
        return f"{row['name']}: {row['fd']:.4g} with {row['nfe']} evaluations a sample ({setting})."
    row = max(few, key=lambda one: one["steps"])
    steps = in_steps(row["steps"])
    if row["fd_ratio"] is None:
        return f"{row['method']} in {steps}: {row['fd']:.4g} ({setting}). No teacher: no ratios."
    beside = f"{row['fd_ratio']:.2f} times its teacher's, {row['speedup']:.0f} times faster"
    return f"{row['method']} in {steps}: {row['fd']:.4g}, {beside} ({setting})."


def in_steps(steps: int) -> str:
    """ "1 step", "2 steps"."""
    return f"{steps} step{'s' if steps > 1 else ''}"


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        head: its title.
        cell: the text for a row of the report, "-" where the row has no such number.
        key: what a row must hold; a column without any such row is left out.
    """

    head: str
    cell: Callable[[Mapping[str, Any]], str]
    key: str = "name"


def _number(head: str, key: str, form: str, scale: float = 1.0) -> Column:
    def cell(row: Mapping[str, Any]) -> str:
        return "-" if row.get(key) is None else form.format(scale * row[key])

    return Column(head, cell, key)


def _columns(score: str) -> list[Column]:
    return [
        Column("model", _name),
        _number("steps", "steps", "{:.0f}"),
        _number("NFE", "nfe", "{:.0f}"),
        _number(score, "fd", "{:.4g}"),
        Column("range", lambda row: _range(row["fd_range"])),
        _number("ratio", "fd_ratio", "{:.2f}"),
        _number("kernel distance", "kernel_distance", "{:.2g}"),
        _number("precision", "precision", "{:.2f}"),
        _number("recall", "recall", "{:.2f}"),
        _number("Inception score", "inception_score", "{:.2f}"),
        _number("classifier score", "classifier_score", "{:.2f}"),
        _number("labels", "label_agreement", "{:.1%}"),
        _number("sliced W2", "sliced_wasserstein", "{:.4g}"),
        _number("map error, median", "flow_map_median", "{:.3g}"),
        _number("map error, RMS", "flow_map_rms", "{:.3g}"),
        _number("ms / sample", "seconds_per_sample", "{:.3g}", 1000),
        _number("speedup", "speedup", "{:.1f}x"),
        _number("ESC", "esc", "{:.3g}"),
        _number("ESC ratio", "esc_ratio", "{:.1%}"),
    ]


OPTIONAL = (
    *("kernel_distance", "precision", "recall", "inception_score", "classifier_score"),
    *("sliced_wasserstein", "flow_map_median", "flow_map_rms"),
)


def table(report: Report) -> list[Row]:
    """Head and rows: teachers, students, the noise floor of the real data."""
    real = report["real_vs_real"]
    rows = [*report["teachers"], *report["students"], real | {"name": f"real data, halves of {real['num']}"}]
    columns = [
        column
        for column in _columns(report["score"])
        if column.key not in OPTIONAL or any(row.get(column.key) is not None for row in rows)
    ]
    return [[column.head for column in columns], *([column.cell(row) for column in columns] for row in rows)]


def _name(row: Mapping[str, Any]) -> str:
    kind = row.get("method") if "fd_ratio" in row else row.get("sampler")
    return f"{row['name']} ({kind})" if kind else str(row["name"])


def _range(ends: Sequence[float]) -> str:
    return f"{ends[0]:.4g} .. {ends[1]:.4g}"


def facts(report: Report) -> list[str]:
    """What one must know to read the table, and to repeat it."""
    machine, timing, reference = report["machine"], report["timing"], report["reference"]
    scale = {row["guidance_scale"] for row in [*report["teachers"], *report["students"]]}
    return [
        f"Data {report['data']}: {reference['num']} real samples are the reference; features {report['features']}"
        f" ({reference['num_features']} numbers); {report['num_samples']} samples for each seed.",
        f"{report['score']} is a Frechet distance in these features, the median over the seeds; smaller is better."
        " It is biased upwards by about 1/n: compare only at the same number of samples and in the same features.",
        "The kernel distance has no such bias: equal distributions have 0 in the mean. Precision: share of the samples"
        " that lie where data lies; recall: share of the data that the samples reach (at most 10,000 on each side).",
        "Two random halves of the real data give the last row: with fewer samples in each, its bias is larger.",
        f"Reference teacher: {report['reference_teacher'] or 'none, so there are no ratios'}. NFE: evaluations of the"
        f" network for a sample, counted. ESC: effective sampling compute. Guidance: {', '.join(map(str, scale))}.",
        f"Time: whole calls of {timing['batch']} samples, median of {timing['repeats']} interleaved rounds after a"
        f" warm-up; {machine['cpu']}, {machine['threads']} threads, device {machine['device']},"
        f" torch {machine['torch']}.",
        f"trigflow {machine['trigflow']}, commit {machine['commit'] or 'unknown (not a checkout)'}.",
        *_diversity_facts(report),
        *_flow_map_facts(report),
        *report["notes"],
    ]


def _diversity_facts(report: Report) -> list[str]:
    if not {"inception_score", "classifier_score"} & report["real_vs_real"].keys():
        return []
    return [
        "Inception or classifier score: exp(mean KL(p(y|x) || p(y))), over all samples at once; larger is surer and"
        " more varied. The last row has it for all of the real data."
    ]


def _flow_map_facts(report: Report) -> list[str]:
    if not any("flow_map_rms" in row for row in report["students"]):
        return []
    return [
        "Map error: |f - exact|_2 / sigma_data of one step from t_max, over as many noises as samples, beside the exact"
        " end of each path."
    ]


def to_markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with links to pictures beside it."""
    head, *rows = table(report)
    align = "|" + "|".join([":--"] + ["--:"] * (len(head) - 1)) + "|"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    parts = [f"# {title(report)}", headline(report), "\n".join([f"| {' | '.join(head)} |", align, *lines])]
    parts += [f"![{CAPTIONS[name]}]({name})" for name in pictures]
    return "\n\n".join([*parts, "\n".join(f"- {fact}" for fact in facts(report))]) + "\n"


def title(report: Report) -> str:
    """ "digits beside digits-teacher"."""
    teacher = report["reference_teacher"]
    return (
        f"{report['model']} beside {teacher}"
        if teacher and teacher != report["model"]
        else str(report["model"])
    )


def to_html(report: Report, pictures: Mapping[str, bytes]) -> str:
    """The report as one HTML file: pictures are embedded, nothing is fetched."""
    head, *rows = table(report)
    lines = "".join(_html_row(row, "td") for row in rows)
    body = [
        f"<h1>{html.escape(title(report))}</h1>",
        f"<p>{html.escape(headline(report))}</p>",
        f'<div class="wide"><table>{_html_row(head, "th")}{lines}</table></div>',
        *(_html_figure(CAPTIONS[name], content) for name, content in pictures.items()),
        "<ul>" + "".join(f"<li>{html.escape(fact)}</li>" for fact in facts(report)) + "</ul>",
    ]
    start = '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    start += '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    start += f"<title>{html.escape(title(report))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
    return start + "\n".join(body) + "\n</body>\n</html>\n"


def _html_row(cells: Row, tag: str) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>\n"


def _html_figure(caption: str, content: bytes) -> str:
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    text = html.escape(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


# Pictures


def draw_pictures(report: Report, samples: Mapping[str, Tensor]) -> dict[str, bytes]:
    """File name -> PNG."""
    pictures = {"samples.png": png(panels(samples))} if samples else {}
    if report["students"]:
        pictures["fd-compute.png"] = png(_fd_against_compute(report))
        pictures["fd-steps.png"] = png(_fd_against_steps(report))
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
    """An empty plot with the line below which a score cannot be told from the data's own scatter."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    real = report["real_vs_real"]
    axes.axhline(
        real["fd"], color=REAL_COLOUR, ls="--", label=f"two halves of the real data ({real['num']} each)"
    )
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
            in_steps(row["steps"]), place, (0, 8), textcoords="offset points", ha="center", fontsize=8
        )
    axes.errorbar(x, fd, yerr=[below, above], fmt="o-", color=colour, capsize=3, ms=5, label=label)
