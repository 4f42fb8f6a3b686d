"""report.json as Markdown, and as one HTML file with its pictures embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trigflow.evaluation.figures import CAPTIONS, draw_pictures, in_steps
from trigflow.evaluation.metrics import METRICS, SCORE
from trigflow.evaluation.page import html_figure, html_page, html_table, markdown_table
from trigflow.system.files import make_folder, write_atomically, write_json
from trigflow.system.numbers import count_of

Report = Mapping[str, Any]
REPORT = "report.json"
Row = list[str]


def write_report(
    report: Report, samples: Mapping[str, Tensor], folder: Path, nearest: Mapping[str, Tensor] | None = None
) -> None:
    """Writes report.md, report.html, their pictures and, last, report.json, each atomically.

    Args:
        report: what `evaluate` measured.
        samples: name -> samples as stored, from equal noises.
        folder: made if it is not there; former reports in it are replaced.
        nearest: name -> some samples, then as many real images, the nearest to each.

    Raises:
        UserError: the folder cannot be made or written.
    """
    make_folder(folder)
    pictures = draw_pictures(report, samples, nearest)
    for name, content in pictures.items():
        write_atomically(folder / name, content)
    write_atomically(folder / "report.md", to_markdown(report, list(pictures)).encode())
    write_atomically(folder / "report.html", to_html(report, pictures).encode())
    write_json(folder / REPORT, dict(report))


# Text


def headline(report: Report) -> str:
    """A sentence: the student with the most steps up to two, against its teacher; and one for each other judge."""
    return " ".join([_main_line(report), *(_line_of(judge) for judge in report.get("judges", []))])


def _row_of_headline(report: Report) -> Mapping[str, Any]:
    few = [row for row in report["students"] if row["steps"] <= 2]
    return max(few, key=lambda one: one["steps"]) if few else (report["students"] or report["teachers"])[-1]


def _line_of(judge: Report) -> str:
    """The same model by another judge."""
    row = _row_of_headline(judge)
    beside = f", {row['fd_ratio']:.2f} times its teacher's" if row.get("fd_ratio") is not None else ""
    return f"{judge['score']}: {row['fd']:.4g}{beside}."


def _main_line(report: Report) -> str:
    score, num = report["score"], report["num_samples"]
    setting = f"{score} of {num} samples, median of {count_of(report['seeds'], 'seed')}"
    row = _row_of_headline(report)
    if row not in report["students"] or row["steps"] > 2:
        return f"{row['name']}: {row['fd']:.4g} with {row['nfe']} evaluations a sample ({setting})."
    steps = in_steps(row["steps"])
    if row["fd_ratio"] is None:
        return f"{row['method']} in {steps}: {row['fd']:.4g} ({setting}). No teacher: no ratios."
    beside = f"{row['fd_ratio']:.2f} times its teacher's, {row['speedup']:.0f} times faster"
    return f"{row['method']} in {steps}: {row['fd']:.4g}, {beside} ({setting})."


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


def _name(row: Mapping[str, Any]) -> str:
    kind = row.get("method") if "fd_ratio" in row else row.get("sampler")
    return f"{row['name']} ({kind})" if kind else str(row["name"])


def _range(row: Mapping[str, Any]) -> str:
    return "{:.4g} .. {:.4g}".format(*row["fd_range"]) if "fd_range" in row else "-"


_MODEL = (
    Column("model", _name),
    _number("steps", "steps", "{:.0f}"),
    _number("NFE", "nfe", "{:.0f}"),
)


def _quality(score: str) -> tuple[Column, ...]:
    return (
        *_MODEL,
        _number(score, SCORE, METRICS[SCORE].form),
        Column("range", _range),
        _number("ratio", "fd_ratio", "{:.2f}"),
        _number("over test", "test_ratio", "{:.2f}"),
        *(_number(metric.heading, name, metric.form) for name, metric in METRICS.items() if name != SCORE),
        _number("map error, median", "flow_map_median", "{:.3g}"),
        _number("map error, RMS", "flow_map_rms", "{:.3g}"),
    )


_COST = (
    *_MODEL,
    _number("ms / sample", "seconds_per_sample", "{:.3g}", 1000),
    _number("speedup", "speedup", "{:.1f}x"),
    _number("ms, batch 1", "latency_seconds", "{:.3g}", 1000),
    _number("speedup, batch 1", "latency_speedup", "{:.1f}x"),
    _number("ESC", "esc", "{:.3g}"),
    _number("ESC ratio", "esc_ratio", "{:.1%}"),
    _number("training", "training_share", "{:.0%}"),
)


def quality_table(report: Report) -> list[Row]:
    """Head and rows: teachers, students, held-out real data, the noise floor of the real data."""
    real = report["real_vs_real"]
    rows = [*report["teachers"], *report["students"], *_held_out(report)]
    rows.append(real | {"name": f"{_what(report['reference'], 'real data')}, halves of {real['num']}"})
    return _table(_quality(report["score"]), rows)


def quality_tables(report: Report) -> list[list[Row]]:
    """The quality table of each judge, the main one's first."""
    return [quality_table(report), *(quality_table(judge) for judge in report.get("judges", []))]


def cost_table(report: Report) -> list[Row]:
    """Head and rows: teachers, students."""
    return _table(_COST, [*report["teachers"], *report["students"]])


def _table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    shown = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return [[column.head for column in shown], *([column.cell(row) for column in shown] for row in rows)]


def _held_out(report: Report) -> list[Mapping[str, Any]]:
    test = report.get("real_test")
    if not test:
        return []
    noised = [row | {"name": row["data"]} for row in test.get("noised", [])]
    return [test | {"name": f"{_what(test, 'held-out real data')}, {test['num']}"}, *noised]


def _what(part: Mapping[str, Any], otherwise: str) -> str:
    """What stands for the real data, if that is not the data itself: "decoded latents"."""
    what = str(part.get("what", "real samples"))
    return otherwise if what == "real samples" else what


def facts(report: Report) -> list[str]:
    """Notes needed to read the table, and to reproduce it."""
    machine, timing, reference = report["machine"], report["timing"], report["reference"]
    scales = {row["name"]: f"{row['guidance_scale']:g}" for row in [*report["teachers"], *report["students"]]}
    return [
        f"Data {report['data']}: {reference['num']} {_what(reference, 'real samples')} are the reference;"
        f" features {report['features']} ({reference['num_features']} numbers); {report['num_samples']} samples for"
        " each seed.",
        f"{report['score']} is a Frechet distance in these features, the median over the seeds; smaller is better."
        " It is biased upwards by about 1/n: compare only at the same number of samples and in the same features.",
        *_judge_facts(report),
        *_metric_facts(report),
        "The row of halves compares two random halves of the real data; with fewer samples, its bias is larger.",
        *_test_facts(report),
        f"Reference teacher: {report['reference_teacher'] or 'none, so there are no ratios'}. NFE: evaluations of the"
        f" network for a sample, counted. ESC: effective sampling compute. Guidance scale (1 is none): "
        + ", ".join(f"{name} {scale}" for name, scale in scales.items())
        + ".",
        f"Time: whole calls of {timing['batch']} samples, and of one, medians of {timing['repeats']} interleaved rounds"
        f" after a warm-up; {machine['cpu']}, {machine['threads']} threads, device {machine['device']},"
        f" torch {machine['torch']}.",
        f"trigflow {machine['trigflow']}, commit {machine['commit'] or 'unknown (not a checkout)'}.",
        *_training_facts(report),
        *_flow_map_facts(report),
        *report["notes"],
    ]


def _test_facts(report: Report) -> list[str]:
    test = report.get("real_test")
    if not test:
        return []
    if _what(test, ""):
        return [
            f"Decoded latents: those of {test['data']}, {test['num']}, in the place of samples: what a model that errs"
            " nowhere but in the autoencoder would get. Over test: a model's distance over theirs."
        ]
    text = (
        f"Held-out real data: {test['num']} samples of {test['data']} that no model was trained on, in the place of"
        " samples: about the score of a perfect model. Over test: a model's distance over theirs."
    )
    if test.get("noised"):
        text += " With noise: of that standard deviation in pixel values, of which white has 255."
    if test["num"] != report["num_samples"]:
        text += f" Theirs has the bias of {test['num']} samples, a model's that of {report['num_samples']}."
    return [text]


def _training_facts(report: Report) -> list[str]:
    if not any(row.get("training_share") for row in report["students"]):
        return []
    return [
        "Training: FLOPs of the student's training over those of its teacher's, which come on top: images x passes"
        " through the network (diffusion 3, sCT 4, sCD 5, with a guided teacher 6), weighted by a pass's FLOPs, and"
        " the samples that the teacher made for it."
    ]


def _judge_facts(report: Report) -> list[str]:
    if not report.get("judges"):
        return []
    others = [f"{one['score']} ({one['reference']['num_features']} numbers)" for one in report["judges"]]
    return [
        f"Other judges of the same samples: {', '.join(others)}. Distances of different judges cannot be compared,"
        " their ratios can: a gain that shows in one judge only is no gain."
    ]


def _metric_facts(report: Report) -> list[str]:
    """Of the metrics that some row holds; several metrics may have one fact."""
    rows = [*report["teachers"], *report["students"], *_held_out(report), report["real_vs_real"]]
    shown = [metric for name, metric in METRICS.items() if any(row.get(name) is not None for row in rows)]
    return list(dict.fromkeys(metric.fact for metric in shown if metric.fact))


def _flow_map_facts(report: Report) -> list[str]:
    if not any("flow_map_rms" in row for row in report["students"]):
        return []
    return [
        "Map error: |f - exact|_2 / sigma_data of one step from t_max, over as many noises as samples, against the"
        " exact end of each path."
    ]


def to_markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The report as Markdown, with links to pictures beside it."""
    parts = [f"# {title(report)}", headline(report)]
    parts += [markdown_table(table) for table in (*quality_tables(report), cost_table(report))]
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
    names = [
        "Quality",
        *(f"Quality by another judge: {judge['score']}" for judge in report.get("judges", [])),
    ]
    parts = [html_table(*table) for table in zip(quality_tables(report), names, strict=True)]
    parts.append(html_table(cost_table(report), "Cost"))
    parts += [html_figure(CAPTIONS[name], content) for name, content in pictures.items()]
    return html_page(title(report), [headline(report)], parts, facts(report))
