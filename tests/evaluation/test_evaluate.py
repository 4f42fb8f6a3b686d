"""Scores: against closed forms with exact models, the report's contract, and users' mistakes."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_models import S_0, SIGMA_DATA, Student, Teacher, gaussian_model
from test_idx import idx

from trigflow.commands import cli
from trigflow.core.samplers import SAMPLERS
from trigflow.data import Dataset, digits, load_data
from trigflow.data.codecs import IdentityCodec, ImageCodec
from trigflow.evaluation import evaluate as evaluate_module
from trigflow.evaluation import measure
from trigflow.evaluation.cached_scores import Store, cached_scores, score_key
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.measure import draw_labels, new_trial, score_all, seconds_per_sample
from trigflow.evaluation.metrics import METRICS, Features, load_features
from trigflow.evaluation.real import default_features, default_judges, with_noise
from trigflow.models.model import load
from trigflow.models.storage import save_model
from trigflow.system.errors import UserError
from trigflow.system.machine import commit, describe_machine

STUDENT_KEYS = {
    *("method", "steps", "nfe", "fd", "fd_range", "fd_ratio", "label_agreement"),
    *("seconds_per_sample", "speedup", "esc", "esc_ratio"),
    *("latency_seconds", "latency_speedup", "training_forwards", "training_share"),
}
TEACHER_KEYS = {
    *("name", "sampler", "guidance_scale", "nfe", "fd", "fd_range", "seconds_per_sample", "params", "esc"),
    *("latency_seconds", "training_forwards"),
}


def gaussian_data(n: int = 4000, num_classes: int = 0, std: float = S_0) -> Dataset:
    """What the exact models draw; of labelled data class 0 is three times as frequent as class 1."""
    data = std * torch.randn(n, 2, generator=torch.Generator().manual_seed(1))
    labels = (torch.arange(n) % 4 == 3).long() if num_classes else None
    if labels is not None:
        data = data + labels[:, None]
    return Dataset("gaussian", data, labels, num_classes, IdentityCodec(SIGMA_DATA))


def run(**changes: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"num": 500, "seeds": 2, "data": gaussian_data(), "progress": False}
    settings |= {"teacher": gaussian_model(Teacher)} | changes
    return evaluate(settings.pop("model", gaussian_model(Student)), **settings)


def test_the_report_keeps_its_contract() -> None:
    report = run(steps=[1, 2, 4], seeds=3)
    assert (report["data"], report["features"], report["num_samples"], report["seeds"]) == (
        "gaussian",
        "pixels",
        500,
        3,
    )
    assert report["reference_teacher"] == "teacher" and report["score"] == "FD-pixels"
    (teacher,) = report["teachers"]
    assert set(teacher) >= TEACHER_KEYS
    assert (teacher["nfe"], teacher["params"], teacher["sampler"]) == (63, 7, "heun")
    assert teacher["esc"] == pytest.approx(63 * 7e-9)
    for row, steps in zip(report["students"], (1, 2, 4), strict=True):
        assert set(row) >= STUDENT_KEYS
        assert (row["method"], row["steps"], row["nfe"], row["label_agreement"]) == (
            "sCD",
            steps,
            steps,
            None,
        )
        assert row["fd"] == sorted(row["fds"])[1] and row["fd_range"] == [min(row["fds"]), max(row["fds"])]
        assert row["fd_ratio"] == row["fd"] / teacher["fd"]
        assert row["esc_ratio"] == pytest.approx(steps / 63)
        assert row["speedup"] == teacher["seconds_per_sample"] / row["seconds_per_sample"]
        assert row["latency_speedup"] == teacher["latency_seconds"] / row["latency_seconds"]
        assert row["latency_seconds"] > 0 and row["seconds_per_sample"] > 0
        assert row["training_forwards"] is None and row["training_share"] is None  # the cards do not tell
    assert "real_test" not in report and "test_ratio" not in teacher
    assert report["real_vs_real"]["num"] == 2000
    assert json.loads(json.dumps(report)) == report


def test_scores_are_the_known_distances() -> None:
    """A student of sd S_0 against data of another sd: FD = 2 (sd - S_0)^2 for two independent elements."""
    data = gaussian_data(20_000, std=0.5)
    report = run(data=data, num=4000, seeds=1, steps=[1], teacher="none")
    assert report["students"][0]["fd"] == pytest.approx(2 * (0.5 - S_0) ** 2, rel=0.05)
    assert report["real_vs_real"]["fd"] < 1e-3
    assert run(num=4000, seeds=1, steps=[1])["students"][0]["fd"] < 1e-3


def test_the_same_call_gives_the_same_scores_at_any_batch() -> None:
    one, other = run(batch=500), run(batch=37)
    for row, again in zip(
        one["students"] + one["teachers"], other["students"] + other["teachers"], strict=True
    ):
        assert row["fds"] == pytest.approx(again["fds"], rel=1e-4)
    assert one["students"][0]["fds"][0] != one["students"][0]["fds"][1]


def test_evaluations_are_counted_while_the_samples_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of Heun's 63 calls of the network, and no others."""
    calls, forward = [], Teacher.forward

    def seen(*args: Any, **cond: Any) -> torch.Tensor:
        calls.append(args)
        return forward(*args, **cond)

    monkeypatch.setattr(Teacher, "forward", seen)
    trial = new_trial(gaussian_data(), [load_features("pixels")], num=20, seeds=1, batch=10)
    ((scores,),) = score_all(trial, [gaussian_model(Teacher)], progress=False)
    assert len(calls) == 2 * 63 and scores.nfe == 63


def test_all_but_the_model_is_named() -> None:
    kinds = {one.name: one.kind for one in inspect.signature(evaluate).parameters.values()}
    assert kinds.pop("model") is inspect.Parameter.POSITIONAL_OR_KEYWORD
    assert set(kinds.values()) == {inspect.Parameter.KEYWORD_ONLY}


def test_labels_follow_the_data() -> None:
    data, model = gaussian_data(num_classes=2), gaussian_model(Student, num_classes=2)
    trial = new_trial(data, [load_features("pixels")], num=4000, seeds=1, batch=1000)
    labels = draw_labels(trial, model, seed=0)
    assert labels is not None
    assert labels.double().mean().item() == pytest.approx(0.25, abs=0.02)
    assert not torch.equal(labels, draw_labels(trial, model, seed=1))  # type: ignore[arg-type]
    unlabelled = dataclasses.replace(trial, dataset=gaussian_data())
    assert torch.equal(draw_labels(unlabelled, model, 0), torch.arange(4000) % 2)  # type: ignore[arg-type]
    assert draw_labels(trial, gaussian_model(Student), seed=0) is None


def test_label_agreement_counts_the_requested_label() -> None:
    """Features that take class 1 for everything agree with exactly the samples of which class 1 was asked."""

    def classify(samples: torch.Tensor) -> torch.Tensor:
        return torch.tensor([[0.0, 1.0]]).expand(len(samples), 2)

    always_one = Features("one", lambda samples: samples, classify)
    nearest = Features(
        "nearest", lambda samples: samples, lambda x: torch.stack([1 - x.sum(1), x.sum(1) - 1], 1)
    )
    model = gaussian_model(Student, num_classes=2)
    for features, expected in ((always_one, 0.25), (nearest, 1.0)):
        trial = new_trial(gaussian_data(num_classes=2), [features], num=1000, seeds=2, batch=300)
        ((scores,),) = score_all(trial, [model.with_plan(1)], progress=False)
        assert scores.of("label_agreement") == pytest.approx([expected] * 2, abs=0.05)


@pytest.mark.parametrize("inception", [False, True])
def test_the_classifier_score_is_reported_by_its_name(
    inception: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sure features that take every sample for one class, and cannot judge labels: 1, for the data as well."""
    known = Features(
        "own",
        lambda samples: samples,
        lambda vectors: torch.tensor([[0.0, 99.0]]).expand(len(vectors), 2),
        checks_labels=False,
        is_inception=inception,
    )
    monkeypatch.setattr(evaluate_module, "load_features", lambda *_: known)
    report = run(steps=[1], seeds=1, model=gaussian_model(Student, num_classes=2), teacher="none", num=64)
    (row,) = report["students"]
    right, wrong = ("inception_score", "classifier_score")[:: 1 if inception else -1]
    assert row[right] == pytest.approx(1) and report["real_vs_real"][right] == pytest.approx(1)
    assert wrong not in row and row["label_agreement"] is None
    assert report["score"] == ("FID" if inception else "FD-own")


def test_held_out_data_is_scored_in_the_place_of_samples() -> None:
    """Of another sd: FD = 2 (sd - S_0)^2 for two independent elements."""
    report = run(steps=[1], test_data=gaussian_data(3000, std=0.5))
    test = report["real_test"]
    assert (test["data"], test["num"], test["label_agreement"]) == ("gaussian", 3000, None)
    assert test["fd"] == pytest.approx(2 * (0.5 - S_0) ** 2, rel=0.05)
    assert test["kernel_distance"] > 0 and 0 < test["precision"] < test["recall"] <= 1
    for row in report["teachers"] + report["students"]:
        assert row["test_ratio"] == row["fd"] / test["fd"]
    with pytest.raises(UserError, match="the test data is gaussian itself"):
        run(test_data=gaussian_data(), teacher="none")
    with pytest.raises(UserError, match="give data of one kind"):
        run(test_data="digits", teacher="none")


def test_noise_is_of_its_level_and_the_same_again() -> None:
    grey = Dataset(
        "grey", torch.full((1500, 1, 8, 8), 100, dtype=torch.uint8), None, 0, ImageCodec((100.0,), (50.0,))
    )
    noised = with_noise(grey, 10)
    assert noised.name == "grey with noise of 10" and torch.equal(noised.data, with_noise(grey, 10).data)
    assert noised.data.double().mean().item() == pytest.approx(100, abs=0.2)
    assert noised.data.double().std().item() == pytest.approx(10, rel=0.02)
    assert not torch.equal(noised.data[:500], noised.data[1000:])
    white = with_noise(
        dataclasses.replace(grey, data=torch.full((4, 1, 8, 8), 255, dtype=torch.uint8)), 10
    ).data
    assert white.max() == 255 and white.min() > 200  # clipped, not wrapped around
    with pytest.raises(UserError, match="pixel values"):
        with_noise(gaussian_data(), 10)


def test_the_test_part_of_mnist_is_found(tmp_path: Path) -> None:
    """Of data that is named; of a Dataset only what is given."""
    for part, count in (("train", 50), ("t10k", 20)):
        images = np.random.default_rng(count).integers(0, 256, (count, 8, 8), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx((np.arange(count) % 10).astype(np.uint8)))
    few: dict[str, Any] = {"steps": [1], "num": 20, "seeds": 1, "progress": False, "teacher": "none"}
    report = evaluate("digits", data=str(tmp_path), features="digits-classifier", **few)
    test = report["real_test"]
    assert (test["num"], test["data"]) == (20, "mnist") and 0 <= test["label_agreement"] <= 1
    assert test["classifier_score"] >= 1 and test["noised"] == []
    assert "real_test" not in evaluate("digits", data=load_data(str(tmp_path)), **few)
    test = evaluate("digits", data=str(tmp_path), noise_levels=[5, 50], **few)["real_test"]
    assert [row["data"] for row in test["noised"]] == ["mnist with noise of 5", "mnist with noise of 50"]
    assert len({test["fd"], *(row["fd"] for row in test["noised"])}) == 3
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="--test-data names it"):
        evaluate("digits", data=str(tmp_path), noise_levels=[5], **few)
    report = evaluate("digits", data=str(tmp_path), **few)
    assert (
        "real_test" not in report and report["features"] == "pixels"
    )  # other images than MNIST's classifier knows


def test_a_stopped_evaluation_goes_on(
    teacher_folder: Path, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --resume nothing is sampled twice for a score, whichever model asks; without it nothing kept is lost."""
    out, sampled, stops = tmp_path / "report", [0], [False]
    original = measure._generate

    def counting(*arguments: Any) -> Any:
        if stops[0] and sampled[0] == 2:
            raise KeyboardInterrupt
        sampled[0] += 1
        return original(*arguments)

    monkeypatch.setattr(measure, "_generate", counting)
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    few: dict[str, Any] = {"steps": [1], "num": 20, "seeds": 2, "progress": False, "out": out}
    stops[0] = True
    with pytest.raises(KeyboardInterrupt, match="add --resume to the same command to continue"):
        evaluate(str(student_folder), teacher=str(teacher_folder), **few)
    assert not (out / "report.json").exists()
    stops[0] = False
    with pytest.raises(UserError, match="holds an evaluation already: continue it with --resume"):
        evaluate(str(student_folder), teacher=str(teacher_folder), **few)
    report = evaluate(str(student_folder), teacher=str(teacher_folder), resume=True, **few)
    assert sampled[0] == 4
    alone = evaluate(str(teacher_folder), resume=True, **few | {"steps": None})
    assert sampled[0] == 4 and alone["teachers"][0]["fds"] == report["teachers"][0]["fds"]
    for path in (*(out / "scores").iterdir(), *(tmp_path / "cache" / "scores").iterdir()):
        path.write_text(path.read_text()[:-9])  # damaged: measured again
    again = evaluate(str(student_folder), teacher=str(teacher_folder), resume=True, **few)
    assert sampled[0] == 8 and again["students"][0]["fds"] == report["students"][0]["fds"]
    evaluate(str(student_folder), teacher=str(teacher_folder), resume=True, **few | {"num": 21})
    assert sampled[0] == 12
    kept_files = sorted((out / "scores").iterdir())
    with pytest.raises(UserError, match="holds an evaluation already"):
        evaluate(str(student_folder), teacher=str(teacher_folder), **few)
    assert sampled[0] == 12 and sorted((out / "scores").iterdir()) == kept_files


def test_of_two_evaluations_in_one_folder_the_second_is_told(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few: dict[str, Any] = {"steps": [1], "num": 4, "seeds": 1, "progress": False, "teacher": "none"}
    original, told = evaluate_module.score_all, []

    def meanwhile(*arguments: Any) -> Any:
        with pytest.raises(UserError, match="in use by another evaluation") as failure:
            evaluate(str(student_folder), out=tmp_path, **few)
        told.append(failure)
        return original(*arguments)

    monkeypatch.setattr(evaluate_module, "score_all", meanwhile)
    evaluate(str(student_folder), out=tmp_path, **few)
    assert len(told) == 1 and (tmp_path / "report.json").exists()


def test_a_terminate_signal_says_how_to_go_on(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate_module, "score_all", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    line = f"evaluate {student_folder} --num 4 --seeds 1 --steps 1 --teacher none --out {tmp_path}"
    assert cli.main(line.split()) == 130
    assert "add --resume to the same command to continue" in capsys.readouterr().err


def test_files_of_others_are_left_alone(student_folder: Path, tmp_path: Path) -> None:
    """A folder "scores" may be anybody's."""
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "league.json").write_text("[]")
    few: dict[str, Any] = {"steps": [1], "num": 4, "seeds": 1, "progress": False, "teacher": "none"}
    evaluate(str(student_folder), out=tmp_path, **few)
    evaluate(str(student_folder), out=tmp_path, resume=True, **few)
    assert (tmp_path / "scores" / "league.json").read_text() == "[]"
    assert len(list((tmp_path / "scores").iterdir())) == 3  # that file, and one of each judge


NUMBERS: dict[str, float | None] = dict.fromkeys(METRICS) | {"fd": 2.0, "kernel_distance": 3.0, "nfe": 2.0}


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        {"fd": 1.0},
        NUMBERS | {"fd": 1},
        NUMBERS | {"fd": None},
        NUMBERS | {"nfe": None},
        NUMBERS | {"recall": float("nan")},
        {name: value for name, value in NUMBERS.items() if name != "recall"},
    ],
)
def test_scores_that_are_not_whole_are_measured_again(damaged: Any, tmp_path: Path) -> None:
    stores = [Store(tmp_path)]
    assert cached_scores(stores, ["key"], 0, lambda _: [NUMBERS]) == ([NUMBERS], False)
    assert cached_scores(stores, ["key"], 0, lambda _: []) == ([NUMBERS], True)
    (file,) = tmp_path.iterdir()
    file.write_text(json.dumps(damaged))
    assert cached_scores(stores, ["key"], 0, lambda _: [NUMBERS]) == ([NUMBERS], False)


def test_scores_of_a_teacher_are_kept_for_all_evaluations(
    teacher_folder: Path, student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    few: dict[str, Any] = {
        "steps": [1],
        "num": 8,
        "seeds": 1,
        "progress": False,
        "teacher": str(teacher_folder),
    }
    first = evaluate(str(student_folder), **few)
    scores = tmp_path / "cache" / "scores"
    kept = sorted(scores.iterdir())
    assert len(kept) == 1 + len(first["judges"])  # of the teacher by each judge, and none of the student
    for file in kept:
        file.write_text(json.dumps(json.loads(file.read_text()) | {"fd": 123.0}))
    again = evaluate(str(student_folder), out=tmp_path / "out", **few)
    assert again["teachers"][0]["fds"] == [123.0]
    assert again["students"][0]["fds"] == first["students"][0]["fds"]
    monkeypatch.setattr("trigflow.evaluation.cached_scores._code_digest", lambda: "another code")
    anew = evaluate(str(student_folder), **few)
    assert anew["teachers"][0]["fds"] == first["teachers"][0]["fds"]
    assert len(list(scores.iterdir())) == 2 * len(kept)


def test_data_that_is_not_here_can_be_named(student_folder: Path, tmp_path: Path) -> None:
    for file in student_folder.glob("model.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "model.json").read_text())
    card["recipe"]["data"] = {"name": "mnist", "options": {"folder": "nowhere"}}
    (tmp_path / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"nowhere holds no train-images.*--data names the data"):
        evaluate(str(tmp_path), teacher="none")
    evaluate(str(tmp_path), teacher="none", data="digits", steps=[1], num=4, seeds=1, progress=False)


def test_resume_wants_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "digits", "--resume"]) == 2
    assert "give its --out" in capsys.readouterr().err


def test_a_classifier_of_other_data_is_told() -> None:
    """Fashion-MNIST comes in files of MNIST's names: the classifier of digits fits its form and nothing else."""
    images = digits()
    wrong = dataclasses.replace(images, labels=(images.labels + 1) % 10)  # type: ignore[operator]
    few: dict[str, Any] = {"steps": [1], "num": 20, "seeds": 1, "progress": False, "teacher": "none"}
    told = [evaluate("digits", data=data, **few)["notes"] for data in (images, wrong)]
    assert not any("it knows other data" in note for note in told[0])
    assert any("it knows other data" in note for note in told[1])


@pytest.mark.parametrize("batch", [1, 64])
def test_time_is_that_of_a_whole_call_over_its_samples(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at each look."""
    ticks = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(ticks)))
    one = gaussian_model(Student).with_plan(1)
    assert seconds_per_sample([one, one], batch) == [1 / batch] * 2
    with pytest.raises(UserError, match="batch is 0"):
        seconds_per_sample([one], 0)


def test_a_teacher_alone() -> None:
    report = run(model=gaussian_model(Teacher), teacher=None)
    assert report["students"] == [] and report["reference_teacher"] == "teacher"
    assert report["teachers"][0]["nfe"] == 63


@pytest.mark.parametrize(
    ("recipe", "note"),
    [
        ({}, "without a teacher model"),
        ({"teacher": "exact"}, "without a teacher model"),
        ({"teacher": "gone/away"}, "'gone/away' was not found"),
    ],
)
def test_without_a_teacher_there_are_no_ratios(recipe: dict[str, Any], note: str, tmp_path: Path) -> None:
    student = gaussian_model(Student)
    student = dataclasses.replace(student, card=dataclasses.replace(student.card, recipe=recipe))
    report = run(model=student, teacher=None, out=tmp_path)
    assert report["teachers"] == [] and report["reference_teacher"] is None
    assert all(row[key] is None for row in report["students"] for key in ("fd_ratio", "speedup", "esc_ratio"))
    assert any(note in line for line in report["notes"])
    assert "no ratios" in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_the_teacher_of_the_recipe_is_found(tmp_path: Path) -> None:
    """A run's student names its teacher's folder; models are loaded by folder, features by their default."""
    recipe = {"data": {"name": "mixture2d", "options": {"n": 500}}, "teacher": str(tmp_path / "teacher")}
    for kind in (Student, Teacher):
        folder = tmp_path / kind.__name__.lower()
        folder.mkdir()
        model = gaussian_model(kind)
        name = f"gaussian_models:{kind.__name__}"
        card = dataclasses.replace(model.card, recipe=recipe, network=type(model.card.network)(name))
        save_model(folder, model.precond, card)
    few = {"num": 64, "seeds": 1, "progress": False, "device": "cpu"}
    report = evaluate(tmp_path / "student", steps=[1], trust_code=True, **few)  # type: ignore[arg-type]
    assert report["reference_teacher"] == str(tmp_path / "teacher") and report["data"] == "mixture2d"
    assert report["machine"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"num": 1}, "num is 1"),
        ({"seeds": 0}, "seeds is 0"),
        ({"batch": 0}, "batch is 0"),
        ({"steps": []}, "one number or several"),
        ({"steps": [1, 0]}, "each 1 or more"),
        ({"steps": [2, 2]}, "is repeated"),
        ({"features": "digits-classifer"}, "did you mean 'digits-classifier'"),
        ({"features": "digits-classifier"}, r"are for data \(1, 8, 8\)"),
        ({"features": ["pixels", "pixels"]}, "'pixels' is there twice"),
        ({"data": digits()}, "has the shape"),
        ({"data": gaussian_data(3)}, "too few"),
        ({"teacher": "nobody"}, "no model 'nobody'"),
        ({"teacher": gaussian_model(Teacher, num_classes=2)}, "choose another teacher"),
        ({"model": "digit"}, "did you mean 'digits'"),
        ({"teacher": gaussian_model(Student)}, "teacher 'student' is a consistency model"),
        ({"model": gaussian_model(Teacher)}, "its own reference: leave the teacher out"),
        ({"model": gaussian_model(Teacher), "teacher": None, "steps": [2]}, "only a student takes steps"),
        ({"teacher": "none", "guidance_scale": 2.0}, "there is no teacher to be guided"),
        ({"guide": gaussian_model(Teacher)}, "a guidance scale of 1 is none"),
    ],
)
def test_mistakes(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        run(**changes)


@pytest.mark.parametrize(
    ("out", "complaint"), [("file", "is a file, not a folder"), ("file/x", "file is a file")]
)
def test_an_unwritable_folder_is_told_before_the_work(
    out: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(evaluate_module, "real_data_of", lambda *_: pytest.fail("worked before it looked"))
    with pytest.raises(UserError, match=complaint):
        run(out=tmp_path / out)


def test_a_folder_without_permission_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write anywhere
    monkeypatch.setattr(evaluate_module, "real_data_of", lambda *_: pytest.fail("worked before it looked"))
    with pytest.raises(UserError, match="no permission"):
        run(out=tmp_path / "a" / "b")


def test_digits_are_scored_in_the_classifiers_features() -> None:
    assert default_judges(digits()) == ("digits-classifier", "digits-judge")
    assert default_features(digits()) == "digits-classifier"
    assert default_features(gaussian_data()) == "pixels"


def test_the_machine_is_described() -> None:
    machine = describe_machine()
    assert machine["torch"] == torch.__version__ and machine["threads"] == torch.get_num_threads()
    assert machine["cpu"] and machine["device"] == "cpu"
    found = commit()
    assert found is None or len(found.removesuffix("-dirty")) == 40


own_heun = dataclasses.replace(SAMPLERS["heun"])


def test_scores_of_a_sampler_of_the_user_s_own_are_not_kept() -> None:
    """Its code may change; and the precision of a model is a part of what its scores depend on."""
    model = load("digits-teacher", "cpu")
    assert score_key("data", model, 8) != score_key("data", model.in_precision("bfloat16"), 8)
    assert score_key("data", model, 8) is not None
    assert score_key("data", model.with_plan(sampler="test_evaluate:own_heun"), 8) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"steps": 3}, "give a list"), ({"batch": "a"}, "whole number"), ({"steps": ["1"]}, "whole")],
)
def test_numbers_of_another_type(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate("digits", **settings)
