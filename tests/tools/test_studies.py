"""The studies, with trainings of two steps: what they write, how they go on, and their arithmetic."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from conftest import TINY

from trigflow import recipes
from trigflow.commands.cli import main
from trigflow.core.samplers import count_nfe as evaluations
from trigflow.data import load_data
from trigflow.evaluation.measure import Trial
from trigflow.models.model import Model, load
from trigflow.objectives import SCDVSD, new_objective
from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.tools.studies import STUDIES, ablation, carry_out, scaling, speed, trained
from trigflow.tools.studies.compute import forwards, forwards_per_image, scaled_to
from trigflow.tools.studies.folder import StudyFolder, open_study
from trigflow.tools.studies.given import Cost, cost_from_card
from trigflow.tools.studies.outcome import Outcome, show, spread
from trigflow.tools.studies.scored import Scored
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.tangents import _terms, derivative_norms
from trigflow.tools.studies.terms import ROWS
from trigflow.tools.studies.terms_outcome import ALL
from trigflow.tools.studies.trained import Pair
from trigflow.tools.studies.workers import _outcome, _Worker, run_all

TRAINED = (*(one for one in TINY if "width" not in one), "teacher.sampling.steps=2")
TWO_SIZES = replace(scaling.SIZES["digits"], networks=(("network.width=8",), ("network.width=16",)))


@pytest.fixture(autouse=True)
def _two_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(scaling.SIZES, "digits", TWO_SIZES)


def study(name: str, subject: object, out: Path, **settings: Any) -> Outcome:
    if name in ("scaling", "ablation", "compute", "terms"):
        settings.setdefault("overrides", TRAINED if name == "scaling" else (*TRAINED, "network.width=16"))
    built = STUDIES[name](str(subject), **{"num": 20, "seeds": 2} | settings)
    return carry_out(built, out, device="cpu", jobs=1, progress=False)


def numbers(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "study.json").read_text())
    return found


def times(out: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted((out / "cells").glob("*.json"))}


def check_files(out: Path, *plots: str) -> None:
    page = (out / "study.html").read_text()
    assert page.count("<img src=") == len(plots) and "Expected: " in page
    assert all((out / plot).exists() and plot in (out / "study.md").read_text() for plot in plots)
    found = numbers(out)
    assert found["machine"]["torch"] == torch.__version__
    assert found["command"].startswith(f"trigflow study {found['study']} ")
    assert found["expectation"] and found["finding"]


# Each study from end to end


def test_scaling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study("scaling", "digits", tmp_path / "out")
    check_files(tmp_path / "out", "scaling.png")
    found = numbers(tmp_path / "out")
    assert found["parameters"][0] < found["parameters"][1]
    teacher, student = (found["scores"][role][1][0] for role in ("teacher", "2 steps"))
    assert (
        found["ratios"]["2 steps"][1]["lowest"]
        <= student / teacher
        <= found["ratios"]["2 steps"][1]["highest"]
    )
    assert len(found["slopes"]["teacher"]) == len(found["slope_differences"]["1 step"]) == 2
    assert "| parameters | teacher, FD-digits-classifier |" in capsys.readouterr().out

    before = times(tmp_path / "out")
    study("scaling", "digits", tmp_path / "out")  # again: only read
    assert times(tmp_path / "out") == before
    with pytest.raises(UserError, match=r"another study \('settings.seeds' differs\)"):
        study("scaling", "digits", tmp_path / "out", seeds=3)
    with pytest.raises(UserError, match="another study"):
        study("compute", "digits", tmp_path / "out")


def test_ablation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "derivative_norms", partial(derivative_norms, num=8, points=5))
    study("ablation", "digits", tmp_path / "out", seeds=1)
    plots = ("scores.png", "norms-teachers.png", "norms-students.png", "training.png")
    check_files(tmp_path / "out", *plots)
    rows = {row["row"]: row for row in numbers(tmp_path / "out")["rows"]}
    assert len(rows) == 1 + len(ablation.SWITCHES) + len(ablation.VARIANTS) + 2
    assert rows["baseline: all on"]["factors"] == {"1": [1.0], "2": [1.0]}
    norms = numbers(tmp_path / "out")["norms"]
    assert set(norms["teachers"]) == set(ablation.FIGURE_4) and set(norms["students"]) == set(rows)
    assert len(norms["teachers"]["EDM, Fourier 16"][0]["time"]) == 5
    off = json.loads((tmp_path / "out/runs" / rows["all off"]["runs"][0] / "recipe.json").read_text())
    assert off["precond"]["c_noise"] == "edm" and off["network"]["options"]["normalization"] == "adagn"
    assert (
        off["objective"]["options"]["normalization"] == "none" and off["objective"]["options"]["warmup"] == 0
    )
    teacher = json.loads((Path(off["teacher"]) / "recipe.json").read_text())
    assert teacher["precond"]["c_noise"] == "edm" and teacher["network"] == off["network"]


def test_compute(tmp_path: Path) -> None:
    study("compute", "digits", tmp_path / "out", shares=(1.0, 5.0))
    check_files(tmp_path / "out", "compute.png")
    cells = numbers(tmp_path / "out")["cells"]
    images = [cells[f"student-share{share}-seed0"]["nimg"] for share in (1, 5)]
    assert images == [16, 96]  # 32 images x 3 passes, 5 to an image, in batches of 16


def test_compute_by_score_distillation(tmp_path: Path) -> None:
    study("compute", "digits", tmp_path / "out", method="scd-vsd", shares=(5.0,), seeds=1)
    found = numbers(tmp_path / "out")
    assert found["title"] == "Training compute: digits-scd-vsd" and "--method scd-vsd" in found["command"]
    recipe = recipes.get("digits-scd-vsd")
    assert (
        f"3 for an image of the teacher's training, {forwards_per_image(recipe):.3g} for" in found["notes"][1]
    )
    images = found["cells"]["student-share5-seed0"]["nimg"]
    assert abs(images - 5 * 96 / forwards_per_image(recipe)) <= 8


def test_compute_with_a_given_teacher(teacher_folder: Path, tmp_path: Path) -> None:
    settings = {"teacher": str(teacher_folder), "shares": (5.0,)}
    study("compute", "digits", tmp_path / "out", overrides=OWN, **settings)
    found = numbers(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out/runs")) == [f"student-share5-seed{seed}" for seed in (0, 1)]
    assert len(set(found["teacher"])) == 1 and found["teacher"][0] != found["scores"]["1"][0][0]
    first, second = (found["cells"][f"student-share5-seed{seed}"] for seed in (0, 1))
    assert first["nimg"] == second["nimg"] == 96 and first["scores"] != second["scores"]
    assert found["plan"]["teacher_weights"] and str(teacher_folder) in found["notes"][-1]


def test_the_training_of_a_given_teacher_has_all_its_phases(teacher_folder: Path) -> None:
    teacher = load(teacher_folder, "cpu")
    card = replace(teacher.card, earlier=(teacher.card.phases[0],) * 2)
    assert cost_from_card(replace(teacher, card=card)) == Cost(3 * 32, 3 * 96)
    with pytest.raises(UserError, match="does not tell what its training cost"):
        cost_from_card(replace(teacher, card=replace(teacher.card, recipe={})))


OWN = (*(one for one in TRAINED if not one.startswith("teacher.")), "network.width=16")  # of teacher_folder


def test_terms(teacher_folder: Path, tmp_path: Path) -> None:
    settings = {"teacher": str(teacher_folder), "share": 4.0, "overrides": OWN}
    outcome = study("terms", "digits", tmp_path / "out", seeds=1, **settings)
    check_files(tmp_path / "out", "scores0.png", "scores1.png")
    found = numbers(tmp_path / "out")
    assert found["judges"] == ["FD-digits-classifier", "FD-digits-judge"] and found["forwards"] == 4 * 96
    rows = {row["row"]: row for row in found["rows"]}
    assert list(rows) == list(ROWS)
    for row in rows.values():  # to a whole batch of 16
        cost = row["cost"]
        assert abs(cost["images"] - 384 / cost["forwards_per_image"]) <= 8 and cost["seconds"][0] > 0
        (cell,) = (found["cells"][name] for name in row["runs"])
        assert cell["nimg"] == cost["images"] and cell["score"] == "FD-digits-classifier"
        for judge in found["judges"]:
            assert row["scores"][judge]["2"] == cell["judges"][judge]["2"]["scores"]
    whole, alone = (rows[name]["cost"] for name in (ALL, "without score distillation"))
    # Student and a model of the samples of each step.
    assert whole["parameters"] == 3 * alone["parameters"]
    assert whole["memory"]["optimizer"] == pytest.approx(3 * alone["memory"]["optimizer"])
    # Weights of net and the two models, the average of each, the target and the teacher; without the models, four less.
    assert whole["memory"]["weights"] == pytest.approx(8 / 4 * alone["memory"]["weights"], rel=1e-3)
    quality, judge, costs = outcome.tables
    assert quality.rows[0][1:5] == ["FD-digits-classifier, 1 step", "precision", "recall", "label accuracy"]
    assert quality.rows[1][0] == "teacher, 5 evaluations" and quality.rows[1][1:5] == quality.rows[1][5:]
    assert len(quality.rows) == len(judge.rows) == len(costs.rows) + 1 == len(ROWS) + 2
    before = times(tmp_path / "out")
    study("terms", "digits", tmp_path / "out", seeds=1, **settings)  # again: only read
    assert times(tmp_path / "out") == before


def test_rows_of_the_study_of_terms() -> None:
    whole = recipes.get("mnist-scd-vsd", ["optimizers.fake.lr=1e-4", "inits.fake=teacher"])
    changed = {label: change(whole) for label, change in ROWS.items()}
    assert changed[ALL] == whole
    alone, without = changed["without score distillation"], changed["without sCD"]
    assert set(alone.optimizers) == {"net"} and alone.inits == {}
    assert alone.optimizers["net"] == replace(whole.optimizers["net"], update_period=1)
    options = whole.objective.options
    kept = ("P_mean", "P_std", "normalization", "adaptive_weight", "warmup", "warmup_unit", "target_halflife")
    assert alone.objective.options == {key: options[key] for key in (*kept, "guidance_scale")}
    assert not {*kept, "vsd_weight", "scd_share"} & set(without.objective.options)
    assert without.objective.options["second_share"] == options["second_share"] > 0
    assert without.optimizers == whole.optimizers
    assert changed["without the second step"].objective.options == {**options, "second_share": 0.0}
    usual, fresh = new_objective(changed["usual noise levels"].objective), SCDVSD()
    for key in ("vsd_P_mean", "vsd_P_std", "fake_P_mean", "fake_P_std"):
        assert getattr(usual, key) == getattr(fresh, key)
    budget = forwards(whole)
    for recipe in changed.values():
        short = scaled_to(recipe, budget)
        assert abs(forwards(short) / budget - 1) < 1e-3


def test_the_plan_of_the_study_of_terms_has_its_rows() -> None:
    plan = STUDIES["terms"]("digits").plan()
    assert plan["teacher_weights"] and list(plan["rows"]) == list(ROWS)
    assert plan["rows"]["weighting sid"]["options"]["weighting"] == "sid"


def test_compute_on_points_with_samples_of_the_teacher(tmp_path: Path) -> None:
    overrides = [*TRAINED, "network.width=8", "data.n=500", "student.train.synthetic=20"]
    study("compute", "mixture2d", tmp_path / "out", overrides=tuple(overrides), shares=(5.0,), seeds=1)
    found = numbers(tmp_path / "out")
    assert found["score"] == "sliced W2"
    assert found["cells"]["student-share5-seed0"]["nimg"] == 80  # (5 x 96 - 20 x 3) / 5 = 84


def test_steps(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    study("steps", student_folder, tmp_path / "out", steps=(1, 2))
    check_files(tmp_path / "out", "steps.png")
    rows = numbers(tmp_path / "out")["rows"]
    assert [row["nfe"] for row in rows] == [1, 2, 9, 15, 21, 31, 63]
    assert all(len(row["scores"]) == 2 for row in rows)
    before = times(tmp_path / "out")
    assert study("steps", student_folder, tmp_path / "out", steps=(1, 2)).numbers["rows"] == rows
    assert times(tmp_path / "out") == before


def test_speed_has_guided_rows_where_the_teacher_can(student_folder: Path, tmp_path: Path) -> None:
    study("speed", student_folder, tmp_path / "out", guidance_scale=2.0)
    check_files(tmp_path / "out", "speed.png")
    found = numbers(tmp_path / "out")
    assert found["rows"]["teacher, guidance 2"]["nfe"] == 126
    assert found["rows"]["teacher, unguided"]["nfe"] == 63
    for batch in ("1", "64"):
        assert found["time_over_two_steps"][batch]["student, 2 steps"] == 1
        assert found["timing"]["seconds_per_sample"][batch].keys() == found["rows"].keys()
    assert found["timing"]["machine"]["threads"] == 1


def test_speed_leaves_guidance_out_where_the_teacher_cannot(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "can_be_guided", lambda teacher: False)
    monkeypatch.setattr(speed, "find_rival", lambda ways, score, goal: score(next(ways)) and None)
    outcome = study("speed", student_folder, tmp_path / "out")
    assert not any("guidance" in row for row in outcome.numbers["rows"])
    assert any("No guided rows" in note for note in outcome.notes)
    assert "no setting of the teacher is as good" in outcome.finding


# Stopping, and what diverges


def test_one_process_at_a_time_has_a_study(
    student_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: speed.Speed, bench: StudyContext) -> Outcome:
        with pytest.raises(UserError, match="in use by another study"):
            study("speed", student_folder, tmp_path / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr(speed.Speed, "measure", measure)
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        study("speed", student_folder, tmp_path / "out")


def test_a_stopped_study_goes_on_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings: list[str] = []
    stop_at = [3]

    def train(recipe: Recipe, run: Path, **options: Any) -> Path:
        trainings.append(run.name)
        if len(trainings) == stop_at[0]:
            raise KeyboardInterrupt("the text of a training, which speaks of --resume")
        return original(recipe, run, **options)

    original = trained.train
    monkeypatch.setattr(trained, "train", train)
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        study("scaling", "digits", tmp_path / "out", seeds=1)
    before = times(tmp_path / "out")
    assert len(before) == 2
    study("scaling", "digits", tmp_path / "out", seeds=1)
    assert len(trainings) == len(set(trainings)) + 1 == 5  # only the one that was stopped came twice
    assert before.items() <= times(tmp_path / "out").items()


def test_a_run_that_diverges_is_a_result(tmp_path: Path) -> None:
    wild = (*TRAINED, "student.optimizer.lr=1e30", "student.train.total_nimg=64")
    outcome = study("scaling", "digits", tmp_path / "out", overrides=wild, seeds=1)
    found = numbers(tmp_path / "out")
    assert found["scores"]["1 step"] == [[None], [None]] and found["scores"]["teacher"][0][0] > 0
    assert found["slopes"]["1 step"] == [] and len(found["slopes"]["teacher"]) == 1
    assert outcome.tables[0].rows[1][2:] == ["diverged"] * 4
    assert "no finite loss" in found["cells"]["student-size0-seed0"]["diverged"]


def test_students_of_a_teacher_that_diverged_are_not_trained(tmp_path: Path) -> None:
    wild = (*TRAINED, "network.width=16", "teacher.optimizer.lr=1e30")
    study("compute", "digits", tmp_path / "out", overrides=wild, seeds=1, shares=(1.0,))
    cell = numbers(tmp_path / "out")["cells"]["student-share1-seed0"]
    assert cell["diverged"] == "its teacher teacher-whole-seed0 diverged"
    assert not (tmp_path / "out/runs/student-share1-seed0").exists()


# Several processes


@dataclass(frozen=True)
class Noting:
    """Writes its process's number of threads; or fails."""

    name: str
    folder: Path

    def __call__(self) -> None:
        if self.name == "mistake":
            raise UserError("a mistake")
        if self.name == "bug":
            raise ZeroDivisionError
        if self.name == "death":
            os._exit(1)
        (self.folder / self.name).write_text(f"{os.getpid()} {torch.get_num_threads()}")


def test_tasks_run_in_processes_of_one_thread(tmp_path: Path) -> None:
    done: list[str] = []
    run_all([Noting(name, tmp_path) for name in "abcd"], 2, done.append)
    assert sorted(done) == ["a", "b", "c", "d"]
    pids, threads = zip(*((tmp_path / name).read_text().split() for name in "abcd"), strict=True)
    assert set(threads) == {"1"} and str(os.getpid()) not in pids and len(set(pids)) <= 2


def test_what_a_task_raises_comes_back(tmp_path: Path) -> None:
    for name, error, words in (
        ("mistake", UserError, "a mistake"),
        ("bug", RuntimeError, "ZeroDivisionError"),
    ):
        raised = _outcome(Noting(name, tmp_path))
        assert isinstance(raised, error) and words in str(raised)
    assert _outcome(Noting("a", tmp_path)) is None


def test_a_process_that_is_killed_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the process of 'death' was killed .* --jobs 1"):
        run_all([Noting("death", tmp_path), Noting("a", tmp_path)], 2)


def test_a_process_that_is_killed_between_two_tasks_is_told(tmp_path: Path) -> None:
    """Not by a BrokenPipeError, which the command takes for a reader that has gone."""
    worker = _Worker()
    worker.process.kill()
    worker.process.join()
    with pytest.raises(UserError, match="the process of 'a' was killed"):
        for _ in range(2):  # the first message may still find a pipe
            worker.begin(Noting("a", tmp_path))
    worker.stop()


# Arithmetic


def test_the_slope_of_a_power_law_is_its_exponent() -> None:
    params = [1e5, 2e5, 4e5, 8e5]
    assert scaling.slope(params, [3 * p**-0.5 for p in params]) == pytest.approx(-0.5)
    assert scaling.slope(params, [2.0] * 4) == pytest.approx(0)
    # Least squares by hand: log2 x = 0, 1, 2, log2 y = 0, 0, 3: slope 3/2.
    assert scaling.slope([1, 2, 4], [1, 1, 8]) == pytest.approx(1.5)
    assert scaling.slope(params, [1, 2, 3, math.inf]) is None
    assert scaling.slope(params, [1, 2, 3, 0]) is None
    assert scaling.slope([5, 5], [1, 2]) is None


def test_what_diverged_is_the_worst_score() -> None:
    assert spread([1.0, math.inf, 2.0]) == {"median": 2.0, "lowest": 1.0, "highest": None}
    assert show([1.0, math.inf, math.inf]) == "diverged (1 .. diverged)"
    assert show([0.5]) == "0.5" and show([]) == "-"
    assert scaling.ratio([2.0, math.inf, 1.0], [4.0, 1.0, math.inf]) == [0.5, math.inf]


@dataclass(frozen=True)
class FakeWay:
    nfe: int


def test_the_search_for_a_rival_stops_at_the_first_that_is_no_worse() -> None:
    scores = {2: [9.0, 9.0, 9.0], 3: [1.0, 5.0, 6.0], 4: [1.0, 4.0, 9.0], 5: [0.0, 0.0, 0.0]}
    tried: list[int] = []

    def score(way: Model) -> list[float]:
        tried.append(cast(Any, way).nfe)
        return scores[cast(Any, way).nfe]

    def ways() -> Iterator[Model]:
        return (cast(Model, FakeWay(nfe)) for nfe in scores)

    found = speed.find_rival(ways(), score, goal=4.0)
    assert found is not None and cast(Any, found).nfe == 4 and tried == [2, 3, 4]
    assert speed.find_rival(ways(), score, goal=-1.0) is None


@pytest.mark.parametrize(
    ("first", "kept", "asked"), [(9.0, False, [1]), (5.0, False, [1, None]), (9.0, True, [None])]
)
def test_a_rival_far_from_the_goal_has_one_seed(
    first: float, kept: bool, asked: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A goal of 4: a first seed beyond 6 is enough, unless all of them are there."""
    seen: list[int | None] = []

    class FakeScored:
        bench = SimpleNamespace(folder=SimpleNamespace(has=lambda name: kept))

        def score(self, name: str, way: Model, seeds: int | None = None) -> Any:
            seen.append(seeds)
            return {"name": name, "scores": [first] * (seeds or 3)}

    monkeypatch.setattr(speed, "cell_name", lambda way: "x")
    cell = speed._score_of_rival(cast(Any, FakeScored()), cast(Model, FakeWay(8)), goal=4.0)
    assert seen == asked and cell["name"] == ("x" if asked[-1] is None else "x-seed0")


def test_the_plot_of_speed_has_each_setting_of_the_teacher_once() -> None:
    def cell(nfe: int, sampler: str = "heun", scale: float = 1.0) -> dict[str, Any]:
        return {"nfe": nfe, "sampler": sampler, "guidance_scale": scale}

    cells = {"student, 2 steps": cell(2, "consistency"), "teacher, unguided": cell(63)}
    cells |= {"teacher, guidance 1.5": cell(126, scale=1.5), speed.RIVAL + "heun": cell(5)}
    tried = [cell(3), cell(5), cell(63), cell(4, "dpmpp_2m"), cell(8, "dpmpp_2m", 1.5)]
    places = {label: sorted(one["nfe"] for one in rows) for label, rows in speed.plotted(cells, tried)}
    assert places == {
        "student": [2],
        "teacher, heun": [3, 5, 63],
        "teacher, heun, guided": [126],
        "teacher, dpmpp_2m": [4],
        "teacher, dpmpp_2m, guided": [8],
    }


def test_rivals_come_in_the_order_of_their_evaluations(teacher_folder: Path, tmp_path: Path) -> None:
    teacher = load(teacher_folder, "cpu")
    bench = StudyContext(StudyFolder(tmp_path), torch.device("cpu"))
    ready = Scored(teacher, teacher, cast(Trial, None), bench)
    ways = list(speed.rivals(ready, 2.0))
    nfe = [evaluations(way.default_plan) for way in ways]
    assert nfe == sorted(nfe)
    assert {way.default_plan.sampler for way in ways} == {"heun", "dpmpp_2m"}
    assert max(evaluations(way.default_plan) for way in ways if way.default_plan.guidance_scale == 1) == 63
    assert {way.default_plan.guidance_scale for way in ways} == {1.0, 2.0}


def test_a_recipe_is_scaled_to_a_share_of_the_compute() -> None:
    teacher, student = recipes.get("digits-teacher"), recipes.get("digits-scd", ["train.synthetic=0"])
    assert forwards(teacher) == 3 * 640_000 and forwards(student) == 5 * 256 * 40_000
    short = scaled_to(student, 0.5 * forwards(teacher))
    assert short.train.total_nimg == 192_000 and forwards(short) == 0.5 * forwards(teacher)
    assert short.objective.options["warmup"] == 19_200  # a tenth, as in the recipe
    assert short.ema.halflife_nimg == 4_800
    # 10,000 samples at 63 evaluations leave 1,290,000 passes.
    sampled = scaled_to(
        replace(student, train=replace(student.train, synthetic=10_000)), forwards(teacher), nfe=63
    )
    assert sampled.train.total_nimg == 256 * round(1_290_000 / 5 / 256)
    with pytest.raises(UserError, match="less than the 50000 samples of the teacher cost"):
        scaled_to(recipes.get("digits-scd"), 0.1 * forwards(teacher), nfe=63)
    default = recipes.get("cifar10-scd")  # its warm-up is the objective's own, 10,000 steps
    share = scaled_to(default, 0.5 * forwards(recipes.get("cifar10-teacher")))
    assert share.objective.options["warmup"] == round(
        10_000 * share.train.total_nimg / default.train.total_nimg
    )
    edm = recipes.get(
        "digits-scd",
        ["train.synthetic=0", "optimizer.schedule=inverse_sqrt", "optimizer.schedule.t_ref=400"],
    )
    assert scaled_to(edm, 0.5 * forwards(teacher)).optimizer.schedule.options["t_ref"] == 400 * 192 / 10_240


def test_optimisers_of_each_network_are_scaled() -> None:
    own = ["optimizers.net.schedule=inverse_sqrt", "optimizers.net.schedule.t_ref=400"]
    ramps = ["optimizer.rampup_nimg=2000", "optimizers.net.rampup_nimg=1000"]
    student = recipes.get("digits-scd-vsd", [*own, *ramps])
    short = scaled_to(student, 0.5 * forwards(recipes.get("digits-teacher")))
    factor = short.train.total_nimg / student.train.total_nimg
    assert short.optimizers["net"].schedule.options["t_ref"] == 400 * factor
    assert [short.optimizer_of(name).rampup_nimg for name in ("net", "fake")] == [
        round(1000 * factor),
        round(2000 * factor),
    ]
    assert short.optimizers["net"].update_period == 2
    assert short.objective.options["warmup"] == ((round(100_000 * factor), 0.5),)


def test_both_terms_of_the_derivative(student_folder: Path, teacher_folder: Path) -> None:
    """Against central differences of f, in float64; and their norms over t."""
    student = load(student_folder, "cpu")
    for parameter in student.precond.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    student.precond.double()
    x, dx = torch.randn(2, 5, 1, 8, 8, dtype=torch.float64)
    t, labels = torch.linspace(0.1, 1.5, 5, dtype=torch.float64), torch.arange(5)
    with torch.no_grad():
        terms = _terms(student, x, t, dx, {"labels": labels})
        f, h = student.precond.denoised, 1e-5
        in_time = (f(x, t + h, labels=labels) - f(x, t - h, labels=labels)) / (2 * h)
        in_space = (f(x + h * dx, t, labels=labels) - f(x - h * dx, t, labels=labels)) / (2 * h)
    assert torch.allclose(terms["time"], in_time, atol=1e-7)
    assert torch.allclose(terms["space"], in_space, atol=1e-7)
    student.precond.float()
    dataset = load_data("digits", 0.5)
    norms = derivative_norms(student, load(teacher_folder, "cpu"), dataset, num=4, points=3)
    assert [len(values) for values in norms.values()] == [3] * 4
    assert norms["t"][0] == pytest.approx(0.004, rel=1e-4)


# Overrides, defaults and mistakes


def test_overrides_are_for_both_recipes_or_for_one() -> None:
    pair = Pair("digits").changed(["train.batch=64", "teacher.network.width=8", "student.objective.c=1.0"])
    assert pair.teacher == ("train.batch=64", "network.width=8")
    assert pair.student == ("train.batch=64", "objective.c=1.0")


@pytest.mark.parametrize("name", ["scaling", "ablation", "compute"])
@pytest.mark.parametrize("data", ["digits", "mixture2d", "mnist"])
def test_the_defaults_make_recipes(name: str, data: str) -> None:
    assert STUDIES[name](data).plan()


@pytest.mark.parametrize("data", ["digits", "mnist", "cifar10-small"])
def test_the_defaults_of_score_distillation(data: str) -> None:
    whole = recipes.get(f"{data}-scd-vsd")
    (first, *_) = STUDIES["scaling"](data, method="scd-vsd").plan()["sizes"]
    lengths = {} if data == "digits" else {"train.total_nimg": "256000", "objective.warmup": "[[64000,0.5]]"}
    own = dict(one.split("=") for one in first["student"] if not one.startswith("network"))
    assert own == lengths and whole.train.total_nimg >= 256_000
    assert STUDIES["compute"](data, method="scd-vsd").plan()["student"] == ()


def test_sizes_span_eight_times_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for data, shape, classes in (
        ("digits", (1, 8, 8), 10),
        ("mnist", (1, 28, 28), 10),
        ("mixture2d", (2,), 0),
    ):
        sizes = scaling.SIZES[data].networks
        counts = []
        for size in (sizes[0], sizes[-1]):
            component = recipes.get(f"{data}-scd", size).network
            net = scaling_network(component.name)(shape, classes, **component.options)
            counts.append(sum(parameter.numel() for parameter in net.parameters()))
        assert len(sizes) == 4 and counts[1] >= 8 * counts[0], data


def scaling_network(name: str) -> Any:
    from trigflow.networks import NETWORKS

    return NETWORKS[name]


def complain(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a mistake gives."""
    assert main(["study", *(str(word) for word in words)]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1 and shown.out == ""
    return shown.err


def test_mistakes_are_told_in_one_line(
    tmp_path: Path, teacher_folder: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    assert "unknown study 'scalling' (did you mean 'scaling'?)" in complain(
        capsys, "scalling", "digits", *out
    )
    assert "no recipes for data 'digit' (did you mean 'digits'?)" in complain(
        capsys, "ablation", "digit", *out
    )
    assert "has no sizes for data 'cifar10'" in complain(capsys, "scaling", "cifar10", *out)
    assert "unknown key 'train.bach'" in complain(capsys, "compute", "digits", "train.bach=3", *out)
    assert "the study sets teacher itself" in complain(capsys, "compute", "digits", "student.teacher=x", *out)
    assert "does not accept --shares" in complain(capsys, "scaling", "digits", "--shares", "0.5", *out)
    assert "does not accept train.batch=2" in complain(capsys, "steps", "digits", "train.batch=2", *out)
    assert "each of them once" in complain(capsys, "compute", "digits", "--shares", "1,1", *out)
    for name in ("scaling", "compute"):
        line = complain(capsys, name, "digits", "--method", "scd-vds", *out)
        assert (
            "data 'digits': unknown method 'scd-vds' (did you mean 'scd-vsd'?); there are: scd, scd-vsd"
            in line
        )
    assert "there are: scd\n" in complain(capsys, "compute", "mixture2d", "--method", "sct", *out)
    assert "does not accept --method" in complain(capsys, "ablation", "digits", "--method", "scd", *out)
    assert "a number is repeated" in complain(capsys, "steps", student_folder, "--steps", "1,1", *out)
    assert "give them too" in complain(capsys, "speed", student_folder, "--steps", "1", *out)
    assert "is no consistency model" in complain(capsys, "steps", teacher_folder, *out)
    assert "needs a teacher" in complain(capsys, "steps", student_folder, "--teacher", "none", *out)
    given = ("compute", "digits", "--teacher")
    assert "is a consistency model" in complain(capsys, *given, "digits", *out)
    assert "no model 'nowhere'" in complain(capsys, *given, "nowhere", *out)
    assert "does not fit" in complain(capsys, *given, "mnist-teacher", *out)
    assert "model 'digits-teacher'" in complain(capsys, *given, "digits-teacher", "network.width=8", *out)
    assert "is given and not trained" in complain(
        capsys, *given, "digits-teacher", "teacher.train.batch=8", *out
    )
    assert "data 'mixture2d': unknown method 'scd-vsd'" in complain(capsys, "terms", "mixture2d", *out)
    assert "share 0: give a number above 0" in complain(capsys, "terms", "digits", "--share", "0", *out)
    assert "unknown features 'pixel'" in complain(capsys, "terms", "digits", "--features", "pixel", *out)
    assert "no model 'nowhere'" in complain(capsys, "terms", "digits", "--teacher", "nowhere", *out)
    assert "does not accept --share" in complain(capsys, "compute", "digits", "--share", "1", *out)
    teacher = ("--teacher", student_folder)
    assert "is a consistency model" in complain(capsys, "steps", student_folder, *teacher, *out)
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_had_is_told_before_anything_is_written(
    tmp_path: Path, student_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "out")
    for name in ("scaling", "ablation", "compute"):
        assert "unknown features 'pixel'" in complain(capsys, name, "digits", "--features", "pixel", *out)
    assert "unknown features 'pixel'" in complain(
        capsys, "speed", student_folder, "--features", "pixel", *out
    )
    assert "nowhere" in complain(capsys, "steps", student_folder, "--data", "nowhere.npz", *out)
    guided = ("--guidance-scale", "2")
    assert "never saw the null label" in complain(capsys, "steps", "digits", *guided, *out)
    close = ("--shares", "0.12345678,0.12345679")  # of one name
    assert "each of them once" in complain(capsys, "compute", "digits", *close, *out)
    assert not (tmp_path / "out").exists()


def test_a_study_knows_its_models_again(student_folder: Path, teacher_folder: Path, tmp_path: Path) -> None:
    """By their weights: a student that was trained anew, on as many images, is another one."""
    shutil.copytree(student_folder, tmp_path / "student")
    plan = STUDIES["steps"](str(tmp_path / "student")).plan()
    assert plan == STUDIES["steps"](str(tmp_path / "student")).plan()
    weights = tmp_path / "student" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors[sorted(tensors)[0]] += 1
    safetensors.torch.save_file(tensors, weights)
    changed = STUDIES["steps"](str(tmp_path / "student")).plan()
    assert {key for key in plan if plan[key] != changed[key]} == {"student_weights"}
    other = STUDIES["steps"](str(student_folder), features="pixels").plan()
    assert {key for key in plan if plan[key] != other[key]} == {"reference"}


def test_a_study_knows_its_recipes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that is changed in the package is another one, too."""
    plan = STUDIES["compute"]("digits").plan()
    assert plan == STUDIES["compute"]("digits").plan()
    recipe = recipes.get("digits-teacher", ["optimizer.lr=1e-5"])
    monkeypatch.setitem(recipes.RECIPES, "digits-teacher", lambda: recipe)
    assert STUDIES["compute"]("digits").plan() != plan


def test_a_mistake_leaves_no_study_behind(tmp_path: Path) -> None:
    """What is told by the first training: the corrected command has the folder; once something is there, it has not."""
    open_study(tmp_path / "out", {"overrides": "wrong"})
    folder = open_study(tmp_path / "out", {"overrides": "right"})
    folder.cell("one", lambda: {"score": 1})
    with pytest.raises(UserError, match="'overrides' differs"):
        open_study(tmp_path / "out", {"overrides": "wrong"})
    folder.cell_path("one").write_text("[]")
    with pytest.raises(UserError, match="is damaged: remove it"):
        folder.read("one")


@pytest.mark.parametrize(
    ("asked", "own", "scale"),
    [(None, 1.0, speed.GUIDANCE), (None, 1.4, 1.4), (0.0, 1.4, 0.0), (1.0, 1.4, None)],
)
def test_the_scale_of_the_guided_rows(
    asked: float | None, own: float, scale: float | None, teacher_folder: Path
) -> None:
    teacher = load(teacher_folder, "cpu")
    card = replace(teacher.card, sampling=replace(teacher.card.sampling, guidance_scale=own))
    assert speed._guided_scale(replace(teacher, card=card), asked) == scale


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="holds no study"):
        open_study(tmp_path, {})
    with pytest.raises(UserError, match="is a file"):
        open_study(tmp_path / "file", {})


def test_the_command_runs_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "study",
        "compute",
        "digits",
        *TRAINED,
        "--shares",
        "1",
        "network.width=8",
        "--out",
        tmp_path / "out",
    ]
    options = ["--seeds", "1", "--num", "20", "--jobs", "1", "--device", "cpu"]
    assert main([str(word) for word in (*words, *options)]) == 0
    assert "study.html" in capsys.readouterr().out
    command = numbers(tmp_path / "out")["command"]
    assert "--shares 1 --num 20 --seeds 1 --method scd --out" in command and "network.width=8" in command


@pytest.mark.parametrize("text", ["{}", "[]", "", "\0\0\0", '{"fds": [1.0]}'])
def test_a_damaged_cell_is_named(text: str, tmp_path: Path) -> None:
    folder = open_study(tmp_path, {})
    folder.cell_path("teacher").write_text(text)
    with pytest.raises(
        UserError, match=r"cells/teacher.json is damaged.*remove it, and it is measured again"
    ):
        assert folder.cell("teacher", dict)["diverged"]


@pytest.mark.parametrize("text", ["[]", "5", "null", "{", ""])
def test_a_damaged_state_is_named(text: str, tmp_path: Path) -> None:
    open_study(tmp_path, {})
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(UserError, match=r"state\.json is damaged"):
        open_study(tmp_path, {})
