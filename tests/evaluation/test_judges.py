"""Several judges of the same samples, and the metrics that ask for more than the distance: haze, nearest data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from trigflow.data import Dataset, digits
from trigflow.data.codecs import ImageCodec
from trigflow.evaluation import measure
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.metrics import METRICS, Features, measured
from trigflow.evaluation.metrics.haze import levels, levels_of_each
from trigflow.evaluation.metrics.metric import sample_set
from trigflow.evaluation.metrics.nearest import nearest
from trigflow.evaluation.reference import reference
from trigflow.evaluation.report import to_html, to_markdown

FLAT = Features("flat", lambda samples: samples.flatten(1).float())
NAMES = ["digits-classifier", "digits-judge"]
FEW: dict[str, Any] = {"steps": [1], "num": 40, "seeds": 2, "progress": False, "teacher": "none"}


def quality(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in (*METRICS, "fds", "fd_range") if name in row}


def images(count: int, seed: int) -> Dataset:
    data = torch.randint(0, 256, (count, 1, 4, 4), generator=torch.Generator().manual_seed(seed)).byte()
    return Dataset("noise", data, None, 0, ImageCodec.measure(data))


def test_two_judges_find_what_each_finds_alone(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit, from samples that are drawn once for both, and only for the judge whose scores are missing."""
    drawn, original = [0], measure._generate

    def counting(*arguments: Any) -> Any:
        drawn[0] += 1
        return original(*arguments)

    monkeypatch.setattr(measure, "_generate", counting)
    both = evaluate(str(student_folder), out=tmp_path, **FEW)
    assert drawn[0] == 2 and both["features"] == NAMES[0]
    (other,) = both["judges"]
    alone = [evaluate(str(student_folder), features=name, **FEW) for name in NAMES]
    for found, one in zip((both, other), alone, strict=True):
        assert quality(found["students"][0]) == quality(one["students"][0])
        assert found["real_vs_real"] == one["real_vs_real"] and found["score"] == one["score"]
        assert "judges" not in one
    assert json.loads((tmp_path / "report.json").read_text()) == both
    evaluate(str(student_folder), out=tmp_path, resume=True, features=NAMES[::-1], **FEW)
    assert drawn[0] == 6  # all four were kept
    for text in (to_markdown(both), to_html(both, {})):
        assert "FD-digits-judge" in text and "in one judge only is no gain" in text
    assert (tmp_path / "nearest.png").exists()


def test_haze_counts_the_values_strictly_between() -> None:
    pixels = torch.tensor([[0, 4, 5, 58], [59, 60, 255, 30]], dtype=torch.uint8)
    own = sample_set(FLAT, torch.randn(2, 3), None, levels=levels(pixels))
    assert measured("haze", own, own) == 3 / 8
    assert levels_of_each(pixels).sum(1).tolist() == [4, 4]
    assert torch.equal(levels_of_each(pixels).sum(0), levels(pixels))
    assert measured("haze", own, sample_set(FLAT, torch.randn(2, 3), torch.randn(2, 3))) is None


def test_haze_of_real_data_stands_beside(student_folder: Path) -> None:
    data = digits().data
    report = evaluate(str(student_folder), **FEW)
    assert report["real_vs_real"]["haze"] == ((data > 4) & (data < 59)).double().mean().item()
    assert 0 <= report["students"][0]["haze"] <= 1


def test_copies_of_the_data_are_told_from_new_samples() -> None:
    data, new = images(2000, 0), images(1000, 1)
    real = reference(data, FLAT, 0).data
    copied = sample_set(FLAT, FLAT.extract(data.data[:1000]), None)
    assert measured("nearest", real, copied) == 0
    assert measured("nearest", real, reference(new, FLAT, 0).data) == pytest.approx(1, abs=0.03)


def test_the_nearest_is_that_of_all_pairs() -> None:
    x, y = (torch.randn(count, 5, dtype=torch.float64) for count in (30, 50))
    found = nearest(x, y)
    assert torch.equal(found.rows, torch.cdist(x, y).argmin(1))
    torch.testing.assert_close(found.distances, torch.cdist(x, y).amin(1))
    apart = torch.cdist(y, y).fill_diagonal_(torch.inf)
    assert torch.equal(nearest(y, y, others=True).rows, apart.argmin(1))
