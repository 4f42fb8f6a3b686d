"""The report as text and pictures, from a fixed report."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

from trigflow.evaluation.figures import draw_pictures
from trigflow.evaluation.report import cost_table, headline, quality_table, to_html, to_markdown, write_report
from trigflow.system.errors import UserError


def report(**changes: Any) -> dict[str, Any]:
    cost = {"seconds_per_sample": 0.02, "params": 1_000_000, "guidance_scale": 1.0, "label_agreement": None}
    cost |= {"latency_seconds": 0.3}
    teacher = cost | {"name": "t & t", "method": "diffusion", "sampler": "heun", "steps": 32, "nfe": 63}
    teacher |= {"fd": 1.5, "fd_range": [1.25, 2.0], "esc": 0.063}
    student = cost | {
        "name": "<s>",
        "method": "sCD",
        "sampler": "consistency",
        "fd_range": [1.75, 2.5],
        "fd": 2.0,
    }
    student |= {"seconds_per_sample": 0.0005, "fd_ratio": 4 / 3, "speedup": 40.0, "label_agreement": 0.975}
    student |= {"latency_seconds": 0.012, "latency_speedup": 25.0, "training_share": 0.2}
    students = [student | {"steps": n, "nfe": n, "esc": n / 1000, "esc_ratio": n / 63} for n in (1, 2, 4)]
    return {
        "model": "<s>",
        "data": "digits",
        "features": "digits-classifier",
        "score": "FD-digits-classifier",
        "num_samples": 5000,
        "seeds": 3,
        "reference_teacher": "t & t",
        "teachers": [teacher],
        "students": students,
        "reference": {"num": 1797, "num_features": 64},
        "real_vs_real": {"fd": 3.0, "fd_range": [2.5, 3.5], "splits": 5, "num": 898},
        "timing": {"batch": 64, "repeats": 5},
        "machine": {
            "cpu": "X",
            "threads": 2,
            "device": "cpu",
            "torch": "2.13.0",
            "trigflow": "0.1.0",
            "commit": None,
        },
        "notes": ["A note."],
    } | changes


SAMPLES = {"t": torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "s": torch.ones(4, 1, 8, 8, dtype=torch.uint8)}


def told(table: list[list[str]], row: int) -> dict[str, str]:
    assert len({len(cells) for cells in table}) == 1
    return dict(zip(table[0], table[row], strict=True))


def test_the_tables_say_every_number() -> None:
    quality, cost = quality_table(report()), cost_table(report())
    model = {"model": "<s> (sCD)", "steps": "2", "NFE": "2"}
    assert told(quality, 3) == model | {
        "FD-digits-classifier": "2",
        "range": "1.75 .. 2.5",
        "ratio": "1.33",
        "label accuracy": "97.5%",
    }
    assert told(cost, 3) == model | {
        "ms / sample": "0.5",
        "speedup": "40.0x",
        "ms, batch 1": "12",
        "speedup, batch 1": "25.0x",
        "ESC": "0.002",
        "ESC ratio": "3.2%",
        "training": "20%",
    }
    assert quality[1][:3] == ["t & t (heun)", "32", "63"] and quality[1][5] == "-"
    assert quality[-1][0] == "real data, halves of 898" and quality[-1][3] == "3"
    assert len(cost) == len(quality) - 1 and told(cost, 1)["training"] == "-"


def test_held_out_real_data_is_a_row_and_a_line() -> None:
    test = {"data": "digits", "num": 500, "fd": 1.0, "label_agreement": 0.99, "kernel_distance": 0.1}
    teacher = report()["teachers"][0] | {"test_ratio": 1.5}
    with_test = report(real_test=test, teachers=[teacher])
    table = quality_table(with_test)
    row = told(table, -2)
    assert (row["model"], row["range"], row["FD-digits-classifier"]) == ("held-out real data, 500", "-", "1")
    assert (row["label accuracy"], told(table, 1)["over test"]) == ("99.0%", "1.50")
    assert "500 samples of digits that no model was trained on" in to_markdown(with_test)
    assert "Theirs has the bias of 500 samples" in to_markdown(with_test)
    equal = report(real_test=test | {"num": with_test["num_samples"]}, teachers=[teacher])
    assert "Theirs has the bias" not in to_markdown(equal)
    for name in ("fd-compute.png", "fd-steps.png"):
        assert draw_pictures(with_test, {})[name] != draw_pictures(report(), {})[name]


def test_the_classifier_score_is_told_beside_the_datas_own() -> None:
    scored = report()
    scored["students"][0]["classifier_score"] = 9.126
    scored["real_vs_real"]["classifier_score"] = 9.5
    head, teacher, one, *_, real = quality_table(scored)
    place = head.index("classifier score")
    assert (teacher[place], one[place], real[place]) == ("-", "9.13", "9.50")
    assert "of all real data" in to_markdown(scored) and "Inception score" not in head


def test_headline() -> None:
    assert headline(report()) == (
        "sCD in 2 steps: 2, 1.33 times its teacher's, 40 times faster"
        " (FD-digits-classifier of 5000 samples, median of 3 seeds)."
    )
    alone = report(students=[], seeds=1)
    assert headline(alone).startswith("t & t: 1.5 with 63 evaluations")
    no_teacher = [
        row | {"fd_ratio": None, "speedup": None, "esc_ratio": None} for row in report()["students"]
    ]
    assert headline(report(students=no_teacher)).endswith("No teacher: no ratios.")
    assert headline(report(students=report()["students"][2:])).startswith("<s>: 2 with 4 evaluations")


def test_markdown_is_two_tables_with_their_pictures() -> None:
    text = to_markdown(report(), ["samples.png"])
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert [len(lines) for lines in tables] == [7, 6]
    assert all(len({line.count("|") for line in lines}) == 1 for lines in tables)
    assert text.startswith("# <s> beside t & t\n") and "(samples.png)" in text
    for fact in ("1797 real samples", "64 numbers", "unknown (not a checkout)", "A note.", "2 threads"):
        assert fact in text


class Balanced(HTMLParser):
    """Checks that what is opened is closed, and collects addresses and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_html_stands_alone_and_escapes() -> None:
    pictures = draw_pictures(report(), SAMPLES)
    page = to_html(report(), pictures)
    parser = Balanced()
    parser.feed(page)
    assert parser.open == []
    assert "<s> beside t & t" in parser.text and "<s>" not in page.replace("<strong>", "")
    embedded = [
        base64.b64decode(address.removeprefix("data:image/png;base64,")) for address in parser.addresses
    ]
    assert embedded == list(pictures.values())
    assert not re.search(r"https?://|url\(|@import", page)


def test_everything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "report"
    for _ in range(2):  # a second report replaces the first
        write_report(report(), SAMPLES, folder)
    names = sorted(file.name for file in folder.iterdir())
    assert names == [
        "fd-compute.png",
        "fd-steps.png",
        "latency.png",
        "report.html",
        "report.json",
        "report.md",
        "samples.png",
    ]
    assert json.loads((folder / "report.json").read_text()) == report()


def test_no_student_no_curves() -> None:
    assert list(draw_pictures(report(students=[]), SAMPLES)) == ["samples.png", "latency.png"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "report").touch()
    with pytest.raises(UserError, match="cannot make the folder"):
        write_report(report(), SAMPLES, tmp_path / "report")
