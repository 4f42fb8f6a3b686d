"""The demo, with trainings of two steps: what it writes, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from PIL import Image

from trigflow import recipes
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.tools import demo, diagram

PLAN = demo.DemoSettings(teacher=(*TINY, "sampling.steps=3"), student=TINY, num=20, steps=(1, 2))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    demo.run(out, "cpu", plan=PLAN, progress=False)
    return out


def test_it_writes_models_pictures_and_a_report(finished: Path) -> None:
    report = json.loads((finished / "report" / "report.json").read_text())
    assert [row["steps"] for row in report["students"]] == [1, 2]
    assert report["students"][1]["nfe"] == 2
    assert report["teachers"][0]["nfe"] == 5
    assert demo.HONESTY in report["notes"]
    for name in ("samples.png", "path.png"):
        with Image.open(finished / name) as picture:
            assert picture.width > 500
    assert load(finished / "student", "cpu").is_student
    assert not load(finished / "teacher", "cpu").is_student


def test_again_it_says_that_it_is_finished(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (finished / "samples.png").stat().st_mtime_ns
    demo.run(finished, "cpu", plan=PLAN, progress=False)
    assert "holds a finished demo" in capsys.readouterr().out
    assert (finished / "samples.png").stat().st_mtime_ns == before


def test_another_seed_wants_another_folder(finished: Path) -> None:
    with pytest.raises(UserError, match="'seed' differs"):
        demo.run(finished, "cpu", seed=1, plan=PLAN, progress=False)


def test_a_damaged_state_is_told(tmp_path: Path) -> None:
    (tmp_path / demo.STATE).write_text("[]")
    with pytest.raises(UserError, match="does not hold a demo"):
        demo.run(tmp_path, "cpu", plan=PLAN, progress=False)


def test_a_stopped_demo_goes_on_with_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(diagram, "draw", stop)
        with pytest.raises(KeyboardInterrupt):
            demo.run(tmp_path / "out", "cpu", plan=PLAN, progress=False)
    weights = tmp_path / "out" / "student" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    demo.run(tmp_path / "out", "cpu", plan=PLAN, progress=False)
    assert weights.stat().st_mtime_ns == before
    assert (tmp_path / "out" / "report" / "report.html").exists()


def test_paths_end_where_the_samples_are(teacher_folder: Path, student_folder: Path) -> None:
    """The diagram shows the models' own samples: same noises, and the first prediction is the one-step sample."""
    teacher, student = load(teacher_folder, "cpu"), load(student_folder, "cpu")
    paths = demo.trace_paths(teacher, student, seed=3, num=4)
    assert paths.ts[-1] == 0
    assert torch.equal(paths.pictures[-1], teacher.sample(4, seed=3))
    assert torch.equal(paths.prediction_pictures[0], student.sample(4, steps=1, seed=3))
    assert torch.allclose(paths.predictions[-1], paths.states[-1])  # f(x, 0) = x


def test_heights_are_places_along_the_main_direction() -> None:
    """Ends on a line: the heights are the distances along it, the furthest upwards."""
    line = torch.tensor([3.0, 4.0]) / 5
    places = torch.tensor([-4.0, 1.0, 1.0, 2.0])
    ends = places[:, None] * line
    states = torch.stack([torch.zeros_like(ends), ends])
    assert torch.allclose(diagram.heights(states)[1], -places.double(), atol=1e-6)


def test_ctrl_c_while_training_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt("the text of a training, which speaks of --resume")

    monkeypatch.setattr(demo, "train", stop)
    with pytest.raises(KeyboardInterrupt, match="run the same command to resume"):
        demo.run(tmp_path / "out", "cpu", plan=PLAN, progress=False)


def test_the_default_plan_leaves_the_warm_up() -> None:
    """The student is trained with the whole tangent for most of its time, and on samples of its teacher."""
    recipe = recipes.get("digits-scd", demo.DemoSettings().student)
    assert recipe.objective.options["warmup"] <= recipe.train.total_nimg / 3  # type: ignore[operator]
    assert recipe.objective.options["warmup_unit"] == "images"
    assert 0 < recipe.train.synthetic <= 20_000
    shipped = load("digits", "cpu").card
    assert recipe.train.total_nimg < shipped.nimg  # as demo.HONESTY says
