"""Runs of students that take the guidance scale as an input, and of students of a teacher with a guide."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from gaussian_models import nfe_of
from torch import Tensor

from trigflow import recipes
from trigflow.commands import cli
from trigflow.core.randomness import SampleRandom
from trigflow.data import load_data
from trigflow.evaluation.cached_scores import score_key
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.rows import effective_sampling_compute
from trigflow.evaluation.training_compute import forward_flops, training_forwards
from trigflow.models.model import Model, load
from trigflow.models.storage import load_model, read_card
from trigflow.networks import NETWORKS
from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.system.files import read_json
from trigflow.tools.studies.steps import Steps
from trigflow.training.assembly import assemble
from trigflow.training.loop import train
from trigflow.training.synthetic import synthetic_data

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
    "ddpmpp": ("network.channels=8", "network.channel_mult=[1,2]", "network.num_blocks=1"),
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
    net, plain = (
        assemble(one, CPU)
        .nets["net"]
        .eval()  # weights of a file lie otherwise in memory, and round otherwise
        for one in (recipe, recipes.get("digits-scd", [*rest, *network[:-2], f"teacher={teacher}"]))
    )
    x, t, labels = torch.randn(3, 1, 8, 8), torch.linspace(0.1, 1.5, 3), torch.arange(3)
    start = plain(x, t, labels=labels)
    for scale in (1.0, 2.0):
        assert torch.equal(net(x, t, labels=labels, guidance=torch.full((3,), scale)), start)
    torch.testing.assert_close(start, own.precond(x, t, labels=labels))

    student = load(trained(recipe, tmp_path / "student"), "cpu")
    assert read_card(tmp_path / "student").guidance_range == (1.0, 2.0)
    kinds = [
        read_json(folder / "model.json")["kind"] for folder in (tmp_path / "teacher", tmp_path / "student")
    ]
    assert kinds == ["teacher", "student"]
    scales = [torch.full((3,), scale) for scale in (1.0, 2.0)]
    low, high = (student.precond(x, t, labels=labels, guidance=scale) for scale in scales)
    assert (low - high).square().mean().sqrt() > 1e-4 * low.square().mean().sqrt()
    assert nfe_of(student, student.plan(2, 2.0)) == 2


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
    scales = 1 + 2 * SampleRandom(2**32 - 1, torch.arange(8)).uniform("guidance")
    assert made.labels is not None and len(set(scales.tolist())) == 8
    for k in (0, 5):
        same = teacher.sample(8, labels=made.labels, seed=2**32 - 1, guidance_scale=float(scales[k]))[k]
        assert (made.data[k].int() - same.int()).abs().max() <= 1


def test_a_teacher_is_a_model_and_the_closed_form_an_oracle(teacher_folder: Path) -> None:
    parts = assemble(student_recipe(teacher_folder), CPU)
    assert isinstance(parts.teacher, Model) and parts.teacher.precond is parts.nets["teacher"]
    assert parts.teacher.codec is parts.dataset.codec is parts.model(parts.nets["net"]).codec
    exact = assemble(
        recipes.get("mixture2d-scd", ["teacher=exact", "init=scratch", "train.synthetic=0"]), CPU
    )
    assert exact.teacher is None and exact.nets["teacher"] is exact.dataset.oracle


def test_what_a_student_cost(teacher_folder: Path, tmp_path: Path) -> None:
    student = load(trained(student_recipe(teacher_folder, "train.synthetic=20"), tmp_path / "run"), "cpu")
    teacher = load(teacher_folder, "cpu")
    guided = nfe_of(teacher, teacher.plan(guidance_scale=2.0))
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
        (["objective.guidance_scale=2"], "objective 'scd' draws no guidance scale"),
        (
            ["objective.guidance_scale=[1.5,3]"],
            "sampling.guidance_scale 1: model 'digits-scd' was trained with scales of 1.5 to 3",
        ),
        (
            ["network.guidance_input=false", "objective.guidance_scale=2", "sampling.guidance_scale=2"],
            "sampling.guidance_scale = 2: the student is distilled from a guided teacher",
        ),
        (["objective.guidance_scale=[2,1]"], "objective.guidance_scale = [2, 1]: should be a number from 0"),
        (["objective.guidance_scale=much"], 'objective.guidance_scale = "much": should be a number from 0'),
        (["objective=sct", "objective.guidance_scale=[1,2]"], "not [1, 2]: sct has no teacher to guide"),
    ],
)
def test_parts_that_do_not_fit_are_told(teacher_folder: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        assemble(student_recipe(teacher_folder, *overrides), CPU)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_guidance_that_the_model_could_not_be_sampled_with(teacher_folder: Path) -> None:
    """Before anything is trained, not at the first grid."""
    scale, none = "sampling.guidance_scale=2", "train.label_dropout=0"
    for own, message in (
        (["digits-teacher", none], "never saw the null label; use 1, or train it with train.label_dropout"),
        (["digits-teacher", "data.labels=false", none], "has no classes; use 1"),
        (["digits-scd", f"teacher={teacher_folder}"], "or distil it with objective.guidance_scale=[1,2]"),
    ):
        name, *overrides = own
        with pytest.raises(UserError, match=r"^sampling\.guidance_scale 2: model") as caught:
            assemble(recipes.get(name, [*SMALL, *overrides, scale]), CPU)
        assert message in str(caught.value)


def test_a_teacher_takes_no_scale(teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="objective 'diffusion' draws no guidance scale"):
        assemble(recipes.get("digits-teacher", [*SMALL, "network.guidance_input=true"]), CPU)
    student = trained(student_recipe(teacher_folder), tmp_path / "student")
    with pytest.raises(UserError, match="it is a student, give its teacher"):
        assemble(student_recipe(student), CPU)


# A guide: a weaker model in the place of the null label


@pytest.fixture(scope="module")
def weak_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smaller teacher of digits that never saw the null label (not to be written to)."""
    recipe = recipes.get("digits-teacher", [*TINY, "network.width=8", "sampling.steps=3"])
    return trained(recipe, tmp_path_factory.mktemp("models") / "weak")


def copied(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A model whose card is changed."""
    target.mkdir()
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    card = json.loads((folder / "model.json").read_text())
    change(card)
    (target / "model.json").write_text(json.dumps(card))
    return target


def test_a_guide_guides_the_teacher(teacher_folder: Path, weak_folder: Path) -> None:
    """Also a teacher without dropped labels, and for one scale as well as for a range."""
    for range_or_scale in (RANGE, ("objective.guidance_scale=2",)):
        recipe = recipes.get(
            "digits-scd",
            [*SMALL, f"teacher={weak_folder}", "network.width=8", f"guide={teacher_folder}", *range_or_scale],
        )
        parts = assemble(recipe, CPU)
        x, t, labels = torch.randn(3, 1, 8, 8), torch.linspace(0.1, 1.5, 3), torch.arange(3)
        assert torch.equal(
            parts.nets["guide"].velocity(x, t, labels=labels),
            load(teacher_folder, "cpu").precond.velocity(x, t, labels=labels),
        )
        assert parts.teacher is not None and parts.teacher.guide is not None
        assert parts.card.recipe["guide"] == str(teacher_folder)
        with pytest.raises(UserError, match=r"never saw the null label.*or give guide=FOLDER"):
            assemble(replace(recipe, guide=None), CPU)


def test_sampling_with_a_guide_is_the_formula(teacher_folder: Path, weak_folder: Path) -> None:
    model, guide = load(teacher_folder, "cpu"), load(weak_folder, "cpu")
    both = model.with_guide(guide)
    x, t, labels = torch.randn(3, 1, 8, 8), torch.linspace(0.1, 1.5, 3), torch.arange(3)
    strong, weak = (one.precond.velocity(x, t, labels=labels) for one in (model, guide))
    torch.testing.assert_close(both.velocity(3.0)(x, t, labels=labels), weak + 3 * (strong - weak))
    nfe = nfe_of(model, model.plan(guidance_scale=1.0))
    assert nfe_of(both, both.plan(guidance_scale=3.0)) == 2 * nfe
    assert torch.equal(both.sample(4, guidance_scale=1.0), model.sample(4, guidance_scale=1.0))
    mean = (model.num_parameters + guide.num_parameters) / 2 / 1e9
    assert effective_sampling_compute(both.with_plan(guidance_scale=3.0), 2 * nfe) == pytest.approx(
        mean * 2 * nfe
    )
    keys = {score_key("data", one, 8) for one in (model, both, guide)}
    assert len(keys) == 3, "scores that are kept know their guide"


def test_a_student_of_a_guided_teacher_is_scored_beside_it(
    teacher_folder: Path, weak_folder: Path, tmp_path: Path
) -> None:
    weak = copied(weak_folder, tmp_path / "weak", lambda card: None)
    overrides = (f"guide={weak}", "train.synthetic=20", "sampling.guidance_scale=1.5")
    folder = trained(student_recipe(teacher_folder, *overrides), tmp_path / "run")
    common: dict[str, Any] = {"steps": [1], "num": 8, "seeds": 1, "device": "cpu", "progress": False}
    report = evaluate(folder, **common)
    (row,) = report["teachers"]
    assert (row["guide"], row["guidance_scale"], row["nfe"]) == (str(weak), 1.5, 10)
    assert report["students"][0]["guidance_scale"] == 1.5 and "guide" not in report["students"][0]
    student, teacher = load(folder, "cpu"), load(teacher_folder, "cpu")
    assert training_forwards(student, teacher) == 320 * 6 + 20 * 10
    for file in weak.iterdir():
        file.unlink()
    weak.rmdir()
    with pytest.raises(UserError, match="give its folder with --guide"):
        evaluate(folder, **common)
    assert evaluate(folder, guide=weak_folder, **common)["teachers"][0]["guide"] == str(weak_folder)
    with pytest.raises(UserError, match="no teacher for it to guide"):
        evaluate(folder, teacher="none", guide=weak_folder, **common)


def test_a_run_with_a_guide_goes_on(teacher_folder: Path, weak_folder: Path, tmp_path: Path) -> None:
    same = (f"guide={weak_folder}", "optimizer.schedule=constant", "train.synthetic=40")
    trained(student_recipe(teacher_folder, *same), tmp_path / "whole")
    trained(student_recipe(teacher_folder, *same, "train.total_nimg=160"), tmp_path / "parts")
    trained(student_recipe(teacher_folder, *same), tmp_path / "parts", resume=True)
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(UserError, match="'guide' differs"):
        trained(student_recipe(teacher_folder, *same[1:]), tmp_path / "parts", resume=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(data_shape=[1, 4, 16]), r"its data shape is \(1, 4, 16\), not \(1, 8, 8\)"),
        (
            lambda card: [card[part].update(sigma_data=1.0) for part in ("precond", "codec")],
            "its sigma_data is 1.0, not 0.5",
        ),
        (lambda card: card["codec"].update(mean=[70.0]), "its codec is"),
        (
            lambda card: card.update(kind="student"),
            "is a consistency model: give a diffusion model",
        ),
    ],
)
def test_a_guide_must_live_on_the_same_data(
    change: Callable[[dict[str, Any]], object],
    message: str,
    teacher_folder: Path,
    weak_folder: Path,
    tmp_path: Path,
) -> None:
    guide = copied(weak_folder, tmp_path / "guide", change)
    with pytest.raises(UserError, match=message):
        assemble(student_recipe(teacher_folder, f"guide={guide}"), CPU)
    with pytest.raises(UserError, match=message):
        load(teacher_folder, "cpu").with_guide(load(guide, "cpu"))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits-scd", ["guide=nowhere", *RANGE], "no model 'nowhere'"),
        ("digits-scd", ["guide=digits-teacher"], "objective.guidance_scale = 1 is no guidance"),
        ("digits-sct", ["guide=digits-teacher"], "objective 'sct' has no teacher to guide"),
        ("digits-teacher", ["guide=digits-teacher"], "objective 'diffusion' has no teacher to guide"),
    ],
)
def test_a_guide_without_a_use_is_told(
    name: str, overrides: list[str], message: str, teacher_folder: Path
) -> None:
    with pytest.raises(UserError, match=message):
        assemble(recipes.get(name, [*SMALL, f"teacher={teacher_folder}", *overrides]), CPU)


def test_a_student_has_no_guide(student_folder: Path, weak_folder: Path) -> None:
    with pytest.raises(UserError, match="only a diffusion model has a guide"):
        load(student_folder, "cpu").with_guide(load(weak_folder, "cpu"))


def test_a_guided_flow_map_is_not_known(teacher_folder: Path) -> None:
    """Where a data set has a closed form: the guided velocity is another one."""
    with pytest.raises(UserError, match="the flow map of a guided teacher is not known"):
        assemble(student_recipe(teacher_folder, "sampling.flow_map_num=10"), CPU)


# The command line


def test_the_command_samples_at_a_scale(
    teacher_folder: Path, weak_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = "train.total_nimg=3200"
    recipe = recipes.get("digits-teacher", [*SMALL, longer, "train.label_dropout=0.3", "sampling.steps=3"])
    student = trained(student_recipe(trained(recipe, tmp_path / "teacher"), longer), tmp_path / "student")
    capsys.readouterr()  # of the trainings

    def run(code: int, *words: object) -> str:
        line = ["sample", *words, "--num", 2, "--device", "cpu", "--out", tmp_path / "a.npy"]
        assert cli.main([str(word) for word in line]) == code
        shown = capsys.readouterr()
        assert shown.err.count("\n") == (code == 2)
        return shown.err if code else shown.out

    assert "2 steps, 2 evaluations each" in run(0, student, "--guidance-scale", 1.7)
    low, high = (load(student, "cpu").sample(2, guidance_scale=s) for s in (1.0, 1.7))
    assert np.array_equal(np.load(tmp_path / "a.npy"), high.numpy())
    assert not torch.equal(low, high)
    assert "was trained with scales of 1 to 2; give one in this range" in run(
        2, student, "--guidance-scale", 2.5
    )
    guided = ("--guide", weak_folder, "--steps", 3, "--guidance-scale")
    assert "10 evaluations each" in run(0, teacher_folder, *guided, 2)
    assert "a guidance scale of 1 is none" in run(2, teacher_folder, *guided, 1)
    assert "only a diffusion model has a guide" in run(2, student, *guided, 2)
    assert "no model 'nowhere'" in run(2, teacher_folder, "--guide", "nowhere", "--guidance-scale", 2)
