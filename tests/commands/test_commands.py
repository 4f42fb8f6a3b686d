"""Every verb does its work: what it writes and what it says."""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from trigflow.commands import cli
from trigflow.core.precond import TrigFlowPrecond
from trigflow.models.model import load
from trigflow.tools import demo
from trigflow.training.progress import counted


def run(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    code = cli.main([str(word) for word in words])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_list_names_every_part(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "list")
    for name in ("digits-teacher", "mixture2d-scd", "unet", "dit", "mlp", "diffusion", "sct", "heun"):
        assert f"  {name} " in shown
    assert "functools" not in shown and "partial(" not in shown


def test_list_of_one_kind(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "list", "samplers")
    assert shown.startswith("samplers:\n")
    assert "recipes:" not in shown


def test_train_then_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    run(capsys, "train", "digits-teacher", *TINY, "--out", out, "--seed", 5, "--device", "cpu")
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["train"]["seed"] == 5
    longer = ["train.total_nimg=48" if word.startswith("train.total_nimg") else word for word in TINY]
    run(capsys, "train", "digits-teacher", *longer, "--out", out, "--seed", 5, "--resume", "--device", "cpu")
    assert load(out, "cpu").card.nimg == 48


def test_train_on_data_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(40) % 3)
    out = tmp_path / "run"
    data = tmp_path / "images.npz"
    run(capsys, "train", "digits-teacher", *TINY, "--data", data, "--out", out, "--device", "cpu")
    assert load(out, "cpu").card.num_classes == 3


def test_many_samples_are_counted_by_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a second, by a clock of the test's own: a few samples at once need none."""
    now = [100.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    parts = [torch.zeros(3), torch.zeros(2)]
    assert list(counted(parts, 5, "samples", progress=True)) == parts
    assert "5.00/5.00" not in capsys.readouterr().err

    def slow() -> Iterator[torch.Tensor]:
        now[0] += 1.1
        yield from parts

    assert list(counted(slow(), 5, "samples", progress=True)) == parts
    assert "samples: 100%" in capsys.readouterr().err


def drawing(model: Path, num: int, *more: object) -> tuple[object, ...]:
    """The words of `sample` before its --out, for samples of the classes 3 and 7."""
    return ("sample", model, "--num", num, "--labels", "3,7", *more, "--device", "cpu", "--out")


def test_sample_writes_what_the_model_makes(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = drawing(student_folder, 6, "--seed", 2)
    shown = run(capsys, *common, tmp_path / "new" / "a.npz")
    assert "6 samples" in shown and "2 evaluations each" in shown
    expected = load(student_folder, "cpu").sample(6, labels=[3, 7], seed=2).numpy()
    with np.load(tmp_path / "new" / "a.npz") as stored:
        assert np.array_equal(stored["samples"], expected)
        assert stored["labels"].tolist() == [3, 7, 3, 7, 3, 7]
    run(capsys, *common, tmp_path / "a.npy")
    assert np.array_equal(np.load(tmp_path / "a.npy"), expected)
    run(capsys, *common, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 3 * 8


def test_sample_writes_a_folder_of_pictures(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = drawing(student_folder, 3, "--steps", 1)
    out = f"{tmp_path / 'new' / 'pictures'}/"
    assert run(capsys, *common, out) == f"{out}: 3 samples, consistency, 1 step, 1 evaluation each\n"
    files = sorted(Path(out).iterdir())
    assert [file.name for file in files] == ["000000.png", "000001.png", "000002.png", "dataset.json"]
    expected = load(student_folder, "cpu").sample(3, steps=1, labels=[3, 7])
    for file, image in zip(files, expected, strict=False):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), image[0].numpy())
    listed = json.loads(files[-1].read_text())["labels"]
    assert listed == [["000000.png", 3], ["000001.png", 7], ["000002.png", 3]]
    assert cli.main([str(word) for word in (*common, Path(out))]) == 2  # the folder is in use
    assert "has files in it" in capsys.readouterr().err
    assert cli.main([str(word) for word in (*common, tmp_path / "folder")]) == 2
    assert "or in / for a folder of pictures" in capsys.readouterr().err


def test_info_of_a_model(student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = dict(line.split(maxsplit=1) for line in run(capsys, "info", student_folder).splitlines())
    assert lines["model"].startswith(str(student_folder)) and lines["kind"].startswith("student")
    assert lines["samples"] == "1x8x8, 10 classes" and lines["data"] == "digits"
    assert lines["network"].startswith("mlp, ") and lines["trained"].endswith("32 images")
    assert "c_noise = t" in run(capsys, "info", "digits")


@pytest.mark.parametrize("closed", ["2>&-", "2>err", "<&- 2>err"])
def test_no_bars_where_nobody_looks(closed: str, tmp_path: Path) -> None:
    words = ["train", "digits-teacher", *TINY, "--out", "run", "--device", "cpu"]
    command = f"{sys.executable} -m trigflow {shlex.join(words)} {closed}"
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "run holds the model; to sample from it: trigflow sample run --out samples.png\n"
    said = (tmp_path / "err").read_text() if (tmp_path / "err").exists() else "labels: 10 classes\n"
    assert said == "labels: 10 classes\n"


def test_sample_in_half_precision(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, model = tmp_path / "a.npy", load("digits", "cpu")
    run(capsys, "sample", "digits", "--num", 4, "--precision", "bfloat16", "--device", "cpu", "--out", out)
    samples = np.load(out)
    assert np.array_equal(samples, model.in_precision("bfloat16").sample(4).numpy())
    assert not np.array_equal(samples, model.sample(4).numpy())


def test_sample_counts_the_evaluations_of_the_samples_that_it_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sample of digits-teacher: Heun's 63 calls of the network, and no others to count them."""
    calls, forward = [], TrigFlowPrecond.forward

    def seen(*args: Any, **cond: Any) -> torch.Tensor:
        calls.append(args)
        return forward(*args, **cond)

    monkeypatch.setattr(TrigFlowPrecond, "forward", seen)
    for num in (1, 300):
        calls.clear()
        out = tmp_path / f"{num}.npy"
        shown = run(capsys, "sample", "digits-teacher", "--num", num, "--out", out, "--device", "cpu")
        assert len(calls) == 63 * math.ceil(num / 256)
        assert "63 evaluations each" in shown


def test_sample_of_a_teacher_counts_guided_evaluations(
    teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.npy"
    words = (
        "--steps",
        4,
        "--sampler",
        "ddim",
        "--guidance-scale",
        2,
        "--num",
        2,
        "--device",
        "cpu",
        "--out",
        out,
    )
    assert "ddim, 4 steps, 8 evaluations each" in run(capsys, "sample", teacher_folder, *words)


def test_evaluate_writes_a_report(
    student_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    words = ("--steps", "1,2", "--num", 8, "--seeds", 1, "--device", "cpu", "--out", out)
    shown = run(capsys, "evaluate", student_folder, *words)
    report = json.loads((out / "report.json").read_text())
    assert [row["nfe"] for row in report["students"]] == [1, 2]
    assert "FD-digits-classifier" in shown


def test_train_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "classifier"
    shown = run(capsys, "train-classifier", "digits", "--epochs", 1, "--out", out, "--device", "cpu")
    assert "accuracy" in shown
    assert (out / "classifier.safetensors").exists()


def test_doctor_reports(student_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "ready for consistency training" in run(capsys, "doctor", student_folder, "--device", "cpu")


def test_doctor_builds_a_network_with_the_given_shape(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "doctor", "trigflow.networks:MLP", "--shape", "1,4,4", "--device", "cpu")
    assert "dual" in shown


def test_demo_hands_on_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = demo.DemoSettings(teacher=(*TINY, "sampling.steps=2"), student=TINY, num=4, steps=(1,))
    monkeypatch.setattr(demo, "DemoSettings", lambda: plan)
    run(capsys, "demo", "--out", tmp_path / "demo", "--seed", 4, "--device", "cpu")
    assert json.loads((tmp_path / "demo" / "demo.json").read_text())["seed"] == 4
