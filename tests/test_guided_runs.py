"""Runs of students that take the guidance scale as an input, and of students of a teacher with a guide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TINY
from torch import Tensor

from trigflow import recipes
from trigflow.assembly import assemble
from trigflow.checkpoint import load_model, read_card
from trigflow.data import load_data
from trigflow.errors import UserError
from trigflow.evaluation.training_compute import forward_flops, training_forwards
from trigflow.model import load
from trigflow.networks import NETWORKS
from trigflow.randomness import SampleRandom
from trigflow.recipe import Recipe
from trigflow.studies.steps import Steps
from trigflow.synthetic import synthetic_data
from trigflow.train import train

CPU = torch.device("cpu")
SMALL = (
    *TINY,
    "train.total_nimg=320",
    "train.log_nimg=160",
    "train.checkpoint_nimg=160",
    "optimizer.lr=0.01",
)
RANGE = ("network.guidance_input=true", "objective.guidance_scale=[1,2]", "objective.warmup=0")


def student_recipe(teacher: Path, *overrides: str) -> Recipe:
    return recipes.get("digits-scd", [*SMALL, f"teacher={teacher}", *RANGE, *overrides])


def trained(recipe: Recipe, folder: Path, resume: bool = False) -> Path:
    return train(recipe, folder, resume=resume, device="cpu", progress=False)


SIZES: dict[str, tuple[str, ...]] = {
    "mlp": ("network.width=16", "network.depth=1"),
    "unet": ("network.channels=8", "network.num_blocks=1", "network.input_gain=true"),
    "dit": ("network.width=16", "network.depth=1", "network.heads=2"),
    "edm2": (
        *("network.channels=8", "network.channel_mult=[1,2]", "network.num_blocks=1"),
        *("network.attention_levels=[1]", "network.head_channels=8"),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_from_a_teacher_with_dropped_labels_to_a_student_of_all_scales(name: str, tmp_path: Path) -> None:
    """For each network: the null label is learned, the student starts as its teacher, the scale soon matters."""
    network = (f"network={name}", *SIZES[name], "train.label_dropout=0.5", "sampling.steps=3")
    rest = [one for one in SMALL if not one.startswith("network")]
    teacher = trained(recipes.get("digits-teacher", [*rest, *network]), tmp_path / "teacher")
    own = load(teacher, "cpu")
    one, two = (own.sample(4, guidance_scale=scale).float() for scale in (1.0, 2.0))
    assert not torch.equal(one, two)

    small = [*rest, *network[:-2], *RANGE, f"teacher={teacher}"]
    recipe = recipes.get("digits-scd", small)
    net = assemble(recipe, CPU).nets["net"]
    x, t, labels = torch.randn(3, 1, 8, 8), torch.linspace(0.1, 1.5, 3), torch.arange(3)
    with torch.no_grad():
        start = own.precond(x, t, labels=labels)
        for scale in (1.0, 2.0):
            assert torch.equal(net.eval()(x, t, labels=labels, guidance=torch.full((3,), scale)), start)

    student = load(trained(recipe, tmp_path / "student"), "cpu")
    assert read_card(tmp_path / "student").guidance_range == (1.0, 2.0)
    scales = [torch.full((3,), scale) for scale in (1.0, 2.0)]
    low, high = (student.precond(x, t, labels=labels, guidance=scale) for scale in scales)
    assert (low - high).square().mean().sqrt() > 1e-4 * low.square().mean().sqrt()
    assert student.count_nfe(student.plan(2, 2.0)) == 2


def weights(folder: Path) -> dict[str, Tensor]:
    return dict(load_model(folder)[0].state_dict())


def test_a_stopped_run_goes_on(teacher_folder: Path, tmp_path: Path) -> None:
    same = ("optimizer.schedule=constant", "train.synthetic=40", "train.microbatch=8")
    trained(student_recipe(teacher_folder, *same), tmp_path / "whole")
    trained(student_recipe(teacher_folder, *same, "train.total_nimg=160"), tmp_path / "parts")
    trained(student_recipe(teacher_folder, *same), tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_microbatches_draw_the_same_scales(teacher_folder: Path, tmp_path: Path) -> None:
    few = ("train.total_nimg=64",)
    trained(student_recipe(teacher_folder, *few), tmp_path / "large")
    trained(student_recipe(teacher_folder, *few, "train.microbatch=4"), tmp_path / "small")
    lines = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in ("large", "small")
    ]
    assert lines[0]["tangent_norm"] == pytest.approx(lines[1]["tangent_norm"], rel=1e-4)


def test_a_student_may_start_from_another_with_the_input(teacher_folder: Path, tmp_path: Path) -> None:
    first = trained(student_recipe(teacher_folder), tmp_path / "first")
    net = assemble(student_recipe(teacher_folder, f"init={first}"), CPU).nets["net"]
    assert torch.equal(
        net.state_dict()["network.embedding.guidance.linear.weight"],
        weights(first)["network.embedding.guidance.linear.weight"],
    )


def test_synthetic_data_has_all_scales(teacher_folder: Path, tmp_path: Path) -> None:
    teacher, digits = load(teacher_folder, "cpu"), load_data("digits")
    made = synthetic_data(teacher, digits, 8, 0, (1.0, 3.0), tmp_path / "cache.safetensors", progress=False)
    scales = 1 + 2 * SampleRandom(-1, torch.arange(8)).uniform("guidance")
    assert made.labels is not None and len(set(scales.tolist())) == 8
    for k in (0, 5):
        same = teacher.sample(8, labels=made.labels, seed=-1, guidance_scale=float(scales[k]))[k]
        assert (made.data[k].int() - same.int()).abs().max() <= 1


def test_what_a_student_cost(teacher_folder: Path, tmp_path: Path) -> None:
    student = load(trained(student_recipe(teacher_folder, "train.synthetic=20"), tmp_path / "run"), "cpu")
    teacher = load(teacher_folder, "cpu")
    guided = teacher.count_nfe(teacher.plan(guidance_scale=2.0))
    assert training_forwards(student, teacher) == 320 * 6 + 20 * guided
    assert forward_flops(student) > forward_flops(teacher)


def test_a_study_compares_at_the_same_scale(teacher_folder: Path, tmp_path: Path) -> None:
    folder = trained(student_recipe(teacher_folder, "sampling.guidance_scale=1.5"), tmp_path / "run")
    Steps(str(folder)).plan()
    with pytest.raises(UserError, match="scales of 1 to 2"):
        Steps(str(folder), guidance_scale=3.0).plan()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["network.guidance_input=false"],
            "[1, 2]: a range needs a network that takes the scale as an input",
        ),
        (["objective.guidance_scale=2"], "objective 'scd' draws no scale for it"),
        (
            ["objective.guidance_scale=[1.5,3]"],
            "sampling.guidance_scale = 1: the student learns the scales of",
        ),
        (["objective.guidance_scale=[2,1]"], "objective.guidance_scale = [2, 1]: should be a number from 0"),
        (["objective.guidance_scale=much"], 'objective.guidance_scale = "much": should be a number from 0'),
        (["objective=sct", "objective.guidance_scale=[1,2]"], "a range is for scd"),
    ],
)
def test_parts_that_do_not_fit_are_told(teacher_folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        assemble(student_recipe(teacher_folder, *overrides), CPU)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_teacher_takes_no_scale(teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="objective 'diffusion' draws no scale"):
        assemble(recipes.get("digits-teacher", [*SMALL, "network.guidance_input=true"]), CPU)
    student = trained(student_recipe(teacher_folder), tmp_path / "student")
    with pytest.raises(UserError, match="it is a student, give its teacher"):
        assemble(student_recipe(student), CPU)
