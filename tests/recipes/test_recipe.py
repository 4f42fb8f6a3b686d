"""Recipes are data that is checked, and every recipe of the table can be built."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY

from trigflow import recipes
from trigflow.commands import cli
from trigflow.models.storage import read_card
from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, TrainConfig
from trigflow.system.config import Component, to_json, validate
from trigflow.system.errors import UserError
from trigflow.training.assembly import assemble
from trigflow.training.loop import train

CPU = torch.device("cpu")
NETWORK = TINY[:3]  # that of the teacher in teacher_folder


@pytest.mark.parametrize("name", sorted(recipes.RECIPES))
def test_every_recipe_round_trips_and_says_how_to_run_it(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.name == name
    assert validate(Recipe, json.loads(json.dumps(to_json(recipe)))) == recipe
    assert f"trigflow train {name}" in (recipes.RECIPES[name].__doc__ or "")


NEEDS_FILES = [name for name in recipes.RECIPES if name.startswith(("mnist", "cifar10", "imagenet"))]


@pytest.mark.parametrize("name", sorted(set(recipes.RECIPES) - set(NEEDS_FILES)))
def test_every_recipe_can_be_built(name: str, teacher_folder: Path) -> None:
    """The students of digits want a teacher of their own architecture: a tiny one stands in."""
    tiny = [*NETWORK, f"teacher={teacher_folder}"] if name.startswith("digits-scd") else []
    _check_parts(recipes.get(name, tiny))


def test_recipes_of_mnist_can_be_trained_and_built(tmp_path: Path) -> None:
    """On a few images in files of MNIST's form: a teacher of one step, and its students."""
    for stem, array in {
        "images-idx3": np.zeros((4, 28, 28), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None],
        "labels-idx1": np.arange(4, dtype=np.uint8),
    }.items():
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        (tmp_path / f"train-{stem}-ubyte").write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    data, teacher = f"data.folder={tmp_path}", tmp_path / "teacher"
    short = ["train.batch=2", "train.total_nimg=2", "sampling.grid_nimg=0", "train.tensorboard=false"]
    train(recipes.get("mnist-teacher", [data, *short]), teacher, device="cpu", progress=False)
    for name in ("mnist-scd", "mnist-scd-vsd"):
        _check_parts(recipes.get(name, [data, f"teacher={teacher}"]))
    _check_parts(recipes.get("mnist-sct", [data, f"init={teacher}"]))


@pytest.mark.parametrize("size", ["", "small-"])
def test_recipes_of_cifar10_can_be_trained_and_built(size: str, tmp_path: Path) -> None:
    """On a few images; the paper's size is narrowed, but keeps its levels and its attention, and knows no labels."""
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(4))
    own, teacher = [f"data={tmp_path / 'images.npz'}"], tmp_path / "teacher"
    if not size:
        own += ["data.labels=false", "data.flip=true", "network.channels=16", "network.num_blocks=1"]
    short = ["train.batch=2", "train.total_nimg=2", "sampling.grid_nimg=0", "train.tensorboard=false"]
    train(recipes.get(f"cifar10-{size}teacher", [*own, *short]), teacher, device="cpu", progress=False)
    assert read_card(teacher).num_classes == (4 if size else 0)
    _check_parts(recipes.get(f"cifar10-{size}scd", [*own, f"teacher={teacher}"]))
    if size:
        _check_parts(recipes.get("cifar10-small-scd-vsd", [*own, f"teacher={teacher}"]))
    else:
        _check_parts(recipes.get("cifar10-sct", [*own, f"init={teacher}"]))


@pytest.mark.parametrize(("role", "dropout"), [("teacher", 0.13), ("scd", 0.0), ("sct", 0.20)])
def test_the_network_of_cifar10_is_the_papers(role: str, dropout: float) -> None:
    """DDPM++ with the double normalisation, its options otherwise those of test_ddpmpp.py."""
    network = recipes.get(f"cifar10-{role}").network
    assert (network.name, network.options) == ("ddpmpp", {"dropout": dropout})


def _check_parts(recipe: Recipe) -> None:
    parts = assemble(recipe, CPU)
    assert set(parts.objective.trains) <= set(parts.nets)
    assert ("teacher" in parts.nets) == parts.objective.needs_teacher


def test_optimizer_of_a_network() -> None:
    other = OptimizerConfig(lr=1.0, update_period=5)
    recipe = replace(recipes.get("mixture2d-sct"), optimizers={"score": other})
    assert recipe.optimizer_of("score") == other
    assert recipe.optimizer_of("net") == recipe.optimizer


def test_a_network_gets_an_optimizer_of_its_own_by_overrides() -> None:
    """What is not named is that of `optimizer`, wherever that stands."""
    line = ["optimizers.net.lr=1e-4", "optimizers.net.schedule=cosine", "optimizer.eps=1e-6"]
    recipe = _recipe_of(line)
    expected = replace(recipe.optimizer, lr=1e-4, schedule=Component("cosine"))
    assert recipe.optimizer.eps == 1e-6 and recipe.optimizers == {"net": expected}
    assert (
        _recipe_of(["optimizer.eps=1e-6", 'optimizers.net={"lr": 1e-4, "schedule": {"name": "cosine"}}'])
        == recipe
    )
    assert _recipe_of(["optimizer.eps=1e-6", 'optimizers={"net": {"lr": 1e-4}}', line[1]]) == recipe


def _recipe_of(overrides: list[str]) -> Recipe:
    try:
        return recipes.get("mixture2d-sct", overrides)
    except UserError as error:
        pytest.fail(f"AssertionError: refused: {error}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizers.nett.lr=1e-4", "trains no such network (did you mean 'net'?); there are: net"),
        ("optimizers.net.lrr=1e-4", "unknown key 'optimizers.net.lrr' (did you mean 'lr'?)"),
        ("optimizers.net.lr=0", "optimizers.net.lr = 0: should be greater than 0"),
        ("optimizers.net=5", "optimizers.net = 5: should be"),
        ("optimizers=5", "optimizers = 5: should be"),
    ],
)
def test_mistakes_in_an_optimizer_of_a_network_are_told(
    override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "mixture2d-sct", override, "--out", str(tmp_path / "run")]) == 2
    told = capsys.readouterr().err
    assert message in told and told.count("\n") == 1


@pytest.mark.parametrize("text", ["2024", "007", "1e3", "2024.10", "true", "[1]"])
@pytest.mark.parametrize("key", ["teacher", "guide", "init", "name"])
def test_text_is_taken_as_it_is_typed(key: str, text: str) -> None:
    assert getattr(_recipe_of([f"{key}={text}"]), key) == text


def test_parts_named_by_digits() -> None:
    assert _recipe_of(["data=2024"]).data == Component("2024")
    assert _recipe_of(["teacher=null", 'init="2024"']).teacher is None
    assert _recipe_of(['init="2024"']).init == "2024"


def test_a_teacher_in_a_folder_named_by_digits(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(teacher_folder, "2024")
    out = ["--out", "run", "--device", "cpu"]
    assert cli.main(["train", "digits-scd", *TINY, "teacher=2024", *out]) == 0
    assert read_card(tmp_path / "run").recipe["teacher"] == "2024"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.batch=0", "train.batch = 0: should be greater than or equal to 1"),
        ("train.microbatch=3", "should be a microbatch (3) that divides the batch (512)"),
        ("train.label_dropout=1", "train.label_dropout = 1: should be less than 1"),
        ("train.keep_checkpoints=1", "train.keep_checkpoints = 1: should be greater than or equal to 2"),
        ("sampling.steps=1000000", "sampling.steps = 1000000: should be less than or equal to 100000"),
        ("optimizer.lr=0", "optimizer.lr = 0: should be greater than 0"),
        ("optimizer.lr=NaN", "optimizer.lr = NaN: should be a finite number"),
        ("optimizer.name=sgd", "should be 'adam' or 'radam'"),
        ("ema.ema_std=[]", "ema.ema_std = []"),
        ("ema.ema_std=[0.3]", "ema.ema_std.0 = 0.3: should be less than 0.28"),
        ("precond.c_noise=log", "should be 't' or 'edm'"),
    ],
)
def test_ranges_are_checked(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        recipes.get("mixture2d-sct", [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("digits-scd", [], "needs a teacher: give teacher=FOLDER"),
        ("digits-scd", ["teacher=nowhere"], "no model 'nowhere'"),
        ("digits-scd", ["teacher=exact"], "knows no labels"),
        ("mixture2d-scd", ["objective.guidance_scale=2"], "the teacher 'exact' has no classes"),
        ("mixture2d-sct", ["train.label_dropout=0.1"], "has no labels; set it to 0"),
        ("mixture2d-sct", ["sampling.sampler=consistent"], "did you mean 'consistency'"),
        ("mixture2d-sct", ["network.widht=3"], "did you mean 'width'"),
        ("mixture2d-sct", ["objective.P_sdt=3"], "did you mean 'P_std'"),
        ("mixture2d-sct", ["objective=scm"], "unknown objective 'scm'"),
        ("mixture2d-sct", ["data.n=0"], "data.n = 0: should be greater than or equal to 1"),
        ("mixture2d-sct", ["init=nowhere"], "no model 'nowhere'"),
        ("mixture2d-stc", [], "did you mean 'mixture2d-sct'"),
    ],
)
def test_parts_that_do_not_fit_are_told(name: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        assemble(recipes.get(name, overrides), CPU)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_data_or_architecture_is_told(teacher_folder: Path) -> None:
    for overrides, message in (
        ([f"teacher={teacher_folder}"], r"data shape is \(1, 8, 8\), not \(2,\)"),
        ([f"init={teacher_folder}"], r"data shape is \(1, 8, 8\), not \(2,\)"),
    ):
        with pytest.raises(UserError, match=message):
            assemble(recipes.get("mixture2d-scd", overrides), CPU)
    with pytest.raises(UserError, match=r"does not fit the network: '.*' has the shape"):
        assemble(recipes.get("digits-scd", [*NETWORK, "network.width=32", f"teacher={teacher_folder}"]), CPU)
    with pytest.raises(UserError, match=r"sigma_data is 0\.5, not 1\.0"):
        assemble(recipes.get("digits-scd", ["precond.sigma_data=1.0", f"teacher={teacher_folder}"]), CPU)


def test_guidance_needs_a_teacher_that_saw_the_null_label(teacher_folder: Path, tmp_path: Path) -> None:
    guided = recipes.get("digits-scd", [*NETWORK, "objective.guidance_scale=2", f"teacher={tmp_path}"])
    for file in teacher_folder.glob("model.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    card = json.loads((tmp_path / "model.json").read_text())

    def set_label_dropout(value: float) -> None:
        card["recipe"]["train"]["label_dropout"] = value
        (tmp_path / "model.json").write_text(json.dumps(card))

    set_label_dropout(0.1)
    assemble(guided, CPU)
    set_label_dropout(0.0)
    with pytest.raises(UserError, match="never saw the null label"):
        assemble(guided, CPU)


def test_initial_weights(teacher_folder: Path) -> None:
    """The teacher's average by default, a run's by name, fresh ones by "scratch"; never its adaptive weight."""
    small = [*NETWORK, f"teacher={teacher_folder}"]
    parts = assemble(recipes.get("digits-scd", small), CPU)
    student, teacher = parts.nets["net"], parts.nets["teacher"]
    pairs = zip(student.network.parameters(), teacher.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not student.adaptive_weight.linear.weight.any()
    assert teacher.adaptive_weight.linear.weight.any()

    def first(*overrides: str) -> torch.Tensor:
        net = assemble(recipes.get("digits-sct", [*NETWORK, *overrides]), CPU).nets["net"]
        return torch.cat([p.detach().flatten() for p in net.network.parameters()])

    of_teacher = torch.cat([p.flatten() for p in teacher.network.parameters()])
    assert torch.equal(first(f"init={teacher_folder}"), of_teacher)
    assert torch.equal(first("init=scratch"), first("init=scratch"))
    assert not torch.equal(first("init=scratch", "train.seed=1"), first("init=scratch"))


def test_a_card_tells_the_earlier_trainings_of_its_kind(teacher_folder: Path, student_folder: Path) -> None:
    def earlier(name: str, *overrides: str) -> list[tuple[str, int]]:
        card = assemble(recipes.get(name, [*TINY, *overrides]), CPU).card
        return [(phase.name, phase.nimg) for phase in card.earlier]

    assert earlier("digits-scd", f"teacher={teacher_folder}") == []
    assert earlier("digits-scd", f"teacher={teacher_folder}", f"init={student_folder}") == [
        ("digits-scd", 32)
    ]
    assert earlier("digits-sct", f"init={teacher_folder}") == []
    assert earlier("digits-teacher", f"init={teacher_folder}") == [("digits-teacher", 32)]


def test_defaults_are_whole() -> None:
    recipe = Recipe(
        name="mine", data=Component("digits"), network=Component("unet"), objective=Component("sct")
    )
    assert recipe.train == TrainConfig() and recipe.ema == EMAConfig()
    assemble(recipe, CPU)


def leaves() -> Recipe:
    raise SystemExit("done")


def test_a_function_that_ends_the_process_is_told() -> None:
    with pytest.raises(UserError, match="recipe 'test_recipe:leaves' cannot be made: SystemExit: done"):
        recipes.get("test_recipe:leaves")


def test_networks_may_have_the_names_of_keys(tmp_path: Path) -> None:
    """As a component has: in optimizers, code in either is still not trusted."""
    own = OptimizerConfig(schedule=Component("module:own"))
    recipe = replace(
        recipes.get("mixture2d-sct"), optimizers={"name": OptimizerConfig(), "options": OptimizerConfig()}
    )
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(to_json(recipe)))
    assert recipes.get(str(path)) == recipe
    path.write_text(json.dumps(to_json(replace(recipe, optimizers={**recipe.optimizers, "options": own}))))
    with pytest.raises(UserError, match=r"optimizers\.options\.schedule 'module:own'"):
        recipes.get(str(path))
