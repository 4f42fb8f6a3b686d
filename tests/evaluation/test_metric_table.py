"""The table of metrics: each entry on samples and in the report, and an entry of a user's own."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluate import run
from test_report import report
from torch import Tensor

from trigflow.commands import cli
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.measure import Scores, numbers_of
from trigflow.evaluation.metrics import METRICS, SCORE, Features, Metric, SampleSet
from trigflow.evaluation.metrics.metric import once, sample_set
from trigflow.evaluation.report import quality_table, to_markdown
from trigflow.evaluation.rows import quality

PLAIN = Features("plain", lambda samples: samples.flatten(1))
CLASSES = Features("classes", PLAIN.extract, lambda vectors: vectors[:, :2])
INCEPTION = Features("inception", PLAIN.extract, CLASSES.classify, checks_labels=False, is_inception=True)


def drawn(features: Features, seed: int, count: int, *shape: int) -> SampleSet:
    samples = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    return sample_set(
        features,
        features.extract(samples),
        samples if samples.ndim == 2 else None,
        torch.arange(count) % 2,
        seed,
    )


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)], ids=["points", "images"])
@pytest.mark.parametrize("count", [2, 50])
@pytest.mark.parametrize("features", [PLAIN, CLASSES, INCEPTION], ids=lambda features: features.name)
@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_finite_number_or_none(
    name: str, features: Features, count: int, shape: tuple[int, ...]
) -> None:
    value = METRICS[name].compute(drawn(features, 0, 60, *shape), drawn(features, 1, count, *shape))
    applies = {
        **dict.fromkeys(("fd", "kernel_distance"), True),
        "precision": count > 3,
        "recall": count > 3,
        "inception_score": features is INCEPTION,
        "classifier_score": features is CLASSES,
        "label_agreement": features is CLASSES,
        "sliced_wasserstein": len(shape) == 1,
    }
    assert value is None or math.isfinite(value)
    assert name not in applies or (value is not None) == applies[name]


@pytest.mark.parametrize("name", [name for name in METRICS if name != SCORE])
def test_a_metric_is_in_the_row_and_in_the_table(name: str) -> None:
    one, other = dict.fromkeys(METRICS) | {name: 0.25}, dict.fromkeys(METRICS) | {name: 0.75}
    row = quality(Scores([one, other]))
    assert {key: value for key, value in row.items() if value is not None} == {name: 0.5}
    scored = report()
    scored["students"][0] |= row
    head, _, student, *_ = quality_table(scored)
    metric = METRICS[name]
    assert student[head.index(metric.heading)] == metric.form.format(0.5)
    assert metric.fact in to_markdown(scored)
    shown = {one.heading for key, one in METRICS.items() if key not in (SCORE, name, "label_agreement")}
    assert not shown & set(head)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_listed_with_a_line(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "metrics"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.split()[0] == name)
    assert len(line.split()) > 1


def largest(real: SampleSet, own: SampleSet) -> float:
    """Largest of all values."""
    return float(own.vectors.max())


LARGEST = Metric("largest value", "{:.3f}", largest, "Largest: of all values.", of_real=True)


def test_a_metric_of_a_user_is_in_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "largest", LARGEST)
    found = run(steps=[1], out=tmp_path)
    rows = [*found["teachers"], *found["students"], found["real_vs_real"]]
    assert all(row["largest"] > 0 for row in rows)
    assert json.loads((tmp_path / "report.json").read_text()) == found
    for text in ((tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()):
        assert LARGEST.heading in text and LARGEST.fact in text
        assert all(LARGEST.form.format(row["largest"]) in text for row in rows)


def test_scores_that_were_kept_without_a_metric_are_measured_again(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"steps": [1], "num": 20, "seeds": 1, "progress": False, "teacher": "none"}
    few["features"] = "digits-classifier"
    first = evaluate(str(student_folder), out=tmp_path, **few)["students"][0]
    asked: list[SampleSet] = []

    def counting(real: SampleSet, own: SampleSet) -> float:
        asked.append(own)
        return largest(real, own)

    monkeypatch.setitem(METRICS, "largest", Metric("largest", "{:.3f}", counting))
    for _ in range(2):
        again = evaluate(str(student_folder), out=tmp_path, resume=True, **few)["students"][0]
        assert len(asked) == 1 and again["largest"] > 0 and again["fds"] == first["fds"]


def test_the_numbers_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A metric may return any number: it is kept as a float."""

    def count(real: SampleSet, own: SampleSet) -> Any:
        return torch.tensor(len(own.vectors))

    monkeypatch.setitem(METRICS, "count", Metric("count", "{:.0f}", count))
    numbers = numbers_of(drawn(PLAIN, 0, 60, 4), drawn(PLAIN, 1, 50, 4))
    assert numbers["count"] == 50 and type(numbers["count"]) is float


def test_shared_work_is_done_once_for_a_pair() -> None:
    calls: list[Tensor] = []

    @once
    def distance(real: SampleSet, own: SampleSet) -> float:
        calls.append(own.vectors)
        return float((real.moments.mean - own.moments.mean).norm())

    real, own, other = (drawn(PLAIN, seed, 60, 4) for seed in range(3))
    assert distance(real, own) == distance(real, own) != distance(real, other)
    assert distance(other, own) != distance(real, own) and len(calls) == 3
