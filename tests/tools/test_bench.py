"""Times of sampling: shipped models, and networks of recipes with random weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from trigflow import recipes
from trigflow.commands import cli
from trigflow.models.card import card_of
from trigflow.tools import bench

SMALL = ("network.width=16", "network.hidden=16", "network.depth=1")


def test_a_recipe_s_network_with_random_weights() -> None:
    model = bench.random_model(recipes.get("digits-scd", SMALL), torch.device("cpu"))
    timing = bench.measure(model, (1, 3), batch=2, rounds=2, progress=False)
    assert timing.parameters == model.num_parameters and timing.batch == 2
    assert len(timing.evaluation) == 2 and timing.sampling.keys() == {1, 3}
    assert all(one > 0 for taken in timing.sampling.values() for one in taken)
    assert timing.teacher_nfe == 63
    ratio = timing.teacher_nfe * sorted(timing.evaluation)[0] / max(timing.sampling[3])
    assert timing.speedup(3) >= ratio > 0
    assert "3 steps" in bench.report(timing)


def test_a_student_that_takes_the_guidance_scale() -> None:
    changes = (*SMALL, "network.guidance_input=true", "objective.guidance_scale=[1,2]")
    model = bench.random_model(recipes.get("digits-scd", changes), torch.device("cpu"))
    assert model.guidance_range == (1, 2)
    assert bench.measure(model, (1,), batch=1, rounds=1, progress=False).sampling[1][0] > 0


@pytest.mark.parametrize(
    ("name", "nfe"),
    [
        ("imagenet512-s-scd", 126),
        ("imagenet64-s-sct", 63),
        ("cifar10-scd", 35),
        ("mnist-teacher", 126),
        ("mine", 63),
    ],
)
def test_the_evaluations_of_a_teacher(name: str, nfe: int) -> None:
    recipe = recipes.get(name if name in recipes.RECIPES else "digits-scd")
    card = card_of(replace(recipe, name=name), (3, 32, 32), 10, "student")
    assert bench.teacher_nfe(card) == nfe


def test_a_teacher_s_network_is_timed_as_a_student_s() -> None:
    model = bench.random_model(recipes.get("digits-teacher", SMALL), torch.device("cpu"))
    assert bench.measure(model, (2,), batch=1, rounds=1, progress=False).sampling[2][0] > 0


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("imagenet512-xxl", "imagenet512-xxl-scd"),
        ("digits-teacher", "digits-teacher"),
        ("mnist", "mnist-scd"),
    ],
)
def test_the_first_part_of_a_name_means_the_student(name: str, found: str) -> None:
    assert bench.random_recipe(name).name == found


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    arguments = ["--steps", "1,2", "--rounds", "1", "--device", "cpu"]
    assert cli.main(["bench", "digits", "--random", *SMALL, *arguments, "--json", str(out)]) == 0
    assert "evaluations (extrapolated)" in capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert numbers["model"] == "digits-scd, random weights" and numbers["steps"].keys() == {"1", "2"}
    assert numbers["teacher"]["extrapolated_seconds"] == pytest.approx(63 * numbers["evaluation"]["seconds"])
    assert cli.main(["bench", "digits", *arguments, "--batch", "3"]) == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nothing", "--random"], "unknown recipe 'nothing'"),
        (["digits", "train.batch=3"], "use --random to time a recipe"),
        (["runs/nowhere"], "runs/nowhere"),
        (["digits", "--random", "network.widht=3"], "widht"),
    ],
)
def test_mistakes(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *arguments]) == 2
    message = capsys.readouterr().err
    assert complaint in message and message.count("\n") == 1
