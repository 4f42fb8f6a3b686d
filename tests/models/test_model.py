"""Loading and sampling, with models that are exact for Gaussian data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gaussian_models import S_0, SIGMA_DATA, GaussianNetwork, Student, Teacher, gaussian_model, nfe_of
from torch import nn

from trigflow import recipes
from trigflow.core.samplers import count_nfe
from trigflow.core.time_grids import consistency_times
from trigflow.data.codecs import IdentityCodec
from trigflow.evaluation.metrics import label_agreement, load_features
from trigflow.models.labels import label_of
from trigflow.models.model import Model, load
from trigflow.models.shipped import SHIPPED, model_folder
from trigflow.models.storage import new_precond, read_card, save_model
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, validate
from trigflow.system.devices import Precision
from trigflow.system.distributed import World
from trigflow.system.errors import Diverged, UserError
from trigflow.system.files import read_json, write_json


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_an_exact_student_draws_the_data_in_any_number_of_steps(steps: int) -> None:
    samples = gaussian_model(Student).sample(20_000, steps=steps, batch=20_000)
    assert samples.std().item() == pytest.approx(S_0, rel=0.02)
    assert samples.mean().item() == pytest.approx(0, abs=0.005)


def test_a_teacher_ends_where_the_student_predicts() -> None:
    """The same noise for both: the probability flow's end is the consistency function's value."""
    student, teacher = (
        gaussian_model(Student).sample(100, steps=1),
        gaussian_model(Teacher).sample(100, steps=256),
    )
    assert torch.allclose(student, teacher, atol=5e-4)


@pytest.mark.parametrize("kind", [Student, Teacher])
def test_a_sample_depends_on_its_seed_and_number_alone(kind: type[GaussianNetwork]) -> None:
    model = gaussian_model(kind)
    samples = model.sample(10, steps=2, seed=5, batch=10)
    assert torch.allclose(model.sample(10, steps=2, seed=5, batch=3), samples, atol=1e-6)
    assert torch.allclose(model.sample(4, steps=2, seed=5, batch=1), samples[:4], atol=1e-6)
    assert not torch.allclose(model.sample(10, steps=2, seed=6), samples)


class Apart(World):
    """Processes that do not talk."""

    def any(self, flag: bool) -> bool:
        return flag


@pytest.mark.parametrize("size", [1, 2, 3])
def test_samples_on_the_device_are_the_share_of_each_process(size: int) -> None:
    model = gaussian_model(Student)
    expected = model.sample(8, seed=2, batch=2)
    found = [
        list(model.sample_batches(8, seed=2, batch=2, world=Apart(rank, size), on_device=True))
        for rank in range(size)
    ]
    assert torch.equal(model.sample(8, seed=2, batch=2, on_device=True), expected)
    whole = torch.cat([torch.cat(parts) for parts in zip(*found, strict=True)])
    torch.testing.assert_close(whole[:8], expected, rtol=0, atol=1e-6)


def test_labels_are_taken_in_turn() -> None:
    model = gaussian_model(Student, num_classes=3)
    assert model.labels(5) is not None
    assert torch.equal(model.labels(5), torch.tensor([0, 1, 2, 0, 1]))
    assert torch.equal(model.labels(3, [2, 0]), torch.tensor([2, 0, 2]))
    assert torch.equal(model.labels(2, torch.tensor(1)), torch.tensor([1, 1]))
    means = model.sample(3000, steps=1, labels=[2, 0, 1]).view(-1, 3, 2).mean((0, 2))
    assert torch.allclose(means, torch.tensor([2.0, 0.0, 1.0]), atol=0.02)


def test_guidance_goes_beyond_the_condition() -> None:
    """For equal variances the guided flow's mean is null + scale (mean - null), with null 0."""
    model = gaussian_model(Teacher, num_classes=3)
    samples = model.sample(2000, labels=1, guidance_scale=2.0)
    assert samples.mean().item() == pytest.approx(2.0, abs=0.02)
    own = gaussian_model(Teacher, num_classes=3, guidance_scale=2.0)
    assert torch.equal(own.sample(20, labels=1), samples[:20])


def test_evaluations_are_counted() -> None:
    student, teacher = gaussian_model(Student), gaussian_model(Teacher, num_classes=2)
    assert [nfe_of(student, student.plan(steps)) for steps in (1, 2, 4)] == [1, 2, 4]
    assert nfe_of(teacher, teacher.plan()) == 63
    assert nfe_of(teacher, teacher.plan(guidance_scale=1.5)) == 126
    assert nfe_of(teacher, teacher.plan(5, sampler="ddim")) == 5


@pytest.mark.parametrize("sampler", ["heun", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_evaluations_are_known_where_nothing_is_drawn(sampler: str, guidance_scale: float) -> None:
    """What a teacher's samples cost a training, told without a call of its network."""
    teacher = gaussian_model(Teacher, num_classes=2)
    plan = teacher.plan(7, guidance_scale, sampler)
    assert count_nfe(plan) == nfe_of(teacher, plan)


def test_trajectory_is_the_path_of_the_sample() -> None:
    model = gaussian_model(Teacher, num_classes=2)
    path = model.trajectory(6, steps=64, seed=3)
    assert path.nfe == 127 and len(path.ts) == len(path.states) == 65
    assert path.ts[-1] == 0 and bool((path.ts.diff() < 0).all())
    assert torch.allclose(path.states[-1], model.sample(6, steps=64, seed=3), atol=1e-6)
    student = gaussian_model(Student, num_classes=2)
    for t, x_t in zip(path.ts[:-1].tolist(), path.states, strict=False):
        assert torch.allclose(student.predict_x_0(x_t, t, path.labels), path.states[-1], atol=0.005)


def test_the_middle_time_comes_from_the_card() -> None:
    """The second step starts from fresh noise at t_mid; the first ends where it always does."""
    model = gaussian_model(Student)
    sampling = dataclasses.replace(model.card.sampling, t_mid=0.6)
    other = dataclasses.replace(model, card=dataclasses.replace(model.card, sampling=sampling))
    assert torch.equal(other.sample(8, steps=1), model.sample(8, steps=1))
    assert not torch.allclose(other.sample(8, steps=2), model.sample(8, steps=2))
    assert other.trajectory(8, steps=3).ts[:3].tolist() == pytest.approx(consistency_times(3, t_mid=0.6))


def test_defaults_come_from_the_card() -> None:
    plan = gaussian_model(Teacher).plan()
    assert (plan.sampler, plan.steps, plan.guidance_scale) == ("heun", 32, 1.0)
    assert gaussian_model(Student).is_student and not gaussian_model(Teacher).is_student
    assert gaussian_model(Student).num_parameters == 7


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"n": 0}, "0 samples"),
        ({"n": 1, "batch": 0}, "batches of 0"),
        ({"n": 1, "steps": 0}, "steps is 0"),
        ({"n": 1, "labels": 3}, r"has the classes 0\.\.2"),
        ({"n": 1, "labels": [-1]}, r"has the classes 0\.\.2"),
        ({"n": 1, "labels": []}, r"has the classes 0\.\.2"),
        ({"n": 1, "sampler": "huen"}, "did you mean 'heun'"),
        ({"n": 1, "sampler": "heun"}, "'student' is a consistency model; leave the sampler out"),
        ({"n": 2.5}, "n is 2.5: give a whole number"),
        ({"n": 1, "batch": 2.5}, "batch is 2.5"),
        ({"n": 1, "seed": 1.5}, "seed is 1.5"),
        ({"n": 1, "seed": "x"}, "seed is 'x'"),
        ({"n": 1, "steps": 1.5}, "steps is 1.5"),
        ({"n": 1, "labels": [0, 1]}, "2 labels for 1 samples"),
        ({"n": 1, "labels": 0.5}, "labels 0.5: give whole numbers"),
        ({"n": 1, "labels": ["x"]}, "give whole numbers"),
        ({"n": 1, "guidance_scale": math.inf}, "guidance_scale"),
        ({"n": True}, "n is True: give a whole number"),
        ({"n": 2, "seed": np.bool_(True)}, "seed is .*True.*: give a whole number"),
        ({"n": 2, "steps": True}, "steps is True"),
        ({"n": 2, "labels": [True, False]}, "give whole numbers"),
        ({"n": 2, "labels": np.array([True])}, "give whole numbers"),
        ({"n": 2, "labels": [True, 2]}, "give whole numbers"),
        ({"n": 2, "guidance_scale": True}, "guidance_scale is True"),
    ],
)
def test_mistakes(arguments: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        gaussian_model(Student, num_classes=3).sample(**arguments)


def test_numbers_of_numpy() -> None:
    model = gaussian_model(Student, num_classes=3)
    numbers = {"n": np.uint8(3), "seed": np.int64(3), "steps": np.int32(2), "batch": np.int16(2)}
    assert torch.equal(model.sample(**numbers, labels=np.int64(1)), model.sample(3, 2, 1, 3))
    one, other = (model.trajectory(2, seed=seed).states for seed in (np.int64(2**40), 2**40))
    assert torch.equal(one, other)


def test_labels_for_a_model_without_classes() -> None:
    with pytest.raises(UserError, match="has no classes"):
        gaussian_model(Student).sample(1, labels=0)


# Files


def save_small(folder: Path, **changes: Any) -> Model:
    card = dataclasses.replace(gaussian_model(Student).card, network=Component("mlp"), **changes)
    precond = new_precond(card)
    for parameter in precond.parameters():
        nn.init.normal_(parameter, std=0.1)
    folder.mkdir()
    save_model(folder, precond, card)
    return Model(precond.eval(), IdentityCodec(SIGMA_DATA), card, str(folder))


def test_a_saved_model_draws_the_same(tmp_path: Path, device: torch.device) -> None:
    saved = save_small(tmp_path / "run")
    loaded = load(tmp_path / "run", device)
    assert loaded.device.type == device.type and loaded.card == saved.card
    assert loaded.name == str(tmp_path / "run")
    assert torch.allclose(loaded.sample(4), saved.sample(4), atol=1e-5)
    assert not loaded.sample(1).requires_grad


def test_samples_that_are_not_finite_are_no_pictures() -> None:
    model = load("digits", "cpu")
    with torch.no_grad():
        for parameter in model.precond.network.parameters():
            parameter.fill_(1e38)
    with pytest.raises(Diverged, match=r"samples of the model .digits.* are not finite"):
        model.sample(2)


@pytest.mark.parametrize(("precision", "count_pixel_values"), [("bfloat16", 2.0), ("float16", 0.4)])
@pytest.mark.parametrize("name", ["digits", "mnist"])
def test_samples_in_half_precision_are_the_same_pictures(
    name: str, precision: Precision, count_pixel_values: float
) -> None:
    """Root mean square of the difference in pixel values (found: 0.90 and 0.18)."""
    model = load(name, "cpu")
    exact, low = model.sample(20), model.in_precision(precision).sample(20)
    assert 0 < (low.float() - exact.float()).square().mean().sqrt() < count_pixel_values
    predicted = model.in_precision(precision).predict_x_0(torch.zeros(2, *model.card.data_shape), 1.0)
    assert predicted.dtype == torch.float32


def test_float16_may_be_too_small_for_a_model() -> None:
    model = load("mnist", "cpu").in_precision("float16")
    with torch.no_grad():
        next(iter(model.precond.network.parameters())).fill_(1e5)
    with pytest.raises(Diverged, match=r"are not finite: its training diverged or float16 cannot hold"):
        model.sample(2)
    with pytest.raises(UserError, match="unknown precision 'half'; there are: float32, bfloat16, float16"):
        model.in_precision("half")  # type: ignore[arg-type]


def test_unknown_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"did you mean 'digits'.*one of digits, digits-teacher, mnist"):
        load("digts")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no model"):
        load("empty")
    (tmp_path / "digits").mkdir()
    assert model_folder("digits") != Path("digits")
    assert model_folder("./digits").resolve() == tmp_path / "digits"


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_draw_digits(name: str, device: torch.device) -> None:
    model = load(name, device)
    samples = model.sample(20, seed=1)
    side = 28 if name.startswith("mnist") else 8
    assert samples.shape == (20, 1, side, side) and samples.dtype == torch.uint8
    assert model.is_student == (not name.endswith("-teacher"))
    nfe = {"digits-teacher": 63, "mnist-teacher": 2 * 63}  # MNIST's is guided
    assert nfe_of(model, model.plan()) == nfe.get(name, 2)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_are_those_of_the_recipes(name: str) -> None:
    model = load(name, "cpu")
    own = {
        "digits": ["digits-scd", "teacher=runs/digits-teacher"],
        "mnist": ["mnist-scd-fine", "teacher=runs/mnist-teacher", "init=runs/mnist-scd-3"],
    }
    recipe, *overrides = own.get(name, [name])
    wanted = recipes.get(recipe, overrides)
    assert validate(Recipe, model.card.recipe, "recipe") == wanted
    assert model.card.nimg == wanted.train.total_nimg


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("mnist")])
def test_shipped_models_of_mnist_draw_what_they_are_asked_for(name: str) -> None:
    """Labels as the shipped classifier reads them; a figure with more samples is in results/mnist.json."""
    model = load(name, "cpu")
    labels = torch.arange(100) % 10
    samples = model.sample(100, steps=2 if model.is_student else 9, labels=labels)
    agreement = label_agreement(load_features("mnist-classifier"), samples, labels)
    assert agreement is not None and agreement >= 0.9


@pytest.mark.parametrize("name", SHIPPED)
def test_the_card_tells_a_student_from_a_teacher(name: str, tmp_path: Path) -> None:
    """A card of an older version does not: then it is what its sampler is for."""
    kind = "teacher" if name.endswith("-teacher") else "student"
    told = read_json(model_folder(name) / "model.json")
    assert told["kind"] == kind
    write_json(tmp_path / "model.json", {key: value for key, value in told.items() if key != "kind"})
    assert read_card(tmp_path) == read_card(model_folder(name)) and read_card(tmp_path).kind == kind


def test_a_student_is_what_its_card_says() -> None:
    model = gaussian_model(Student)
    other = dataclasses.replace(model, card=dataclasses.replace(model.card, kind="teacher"))
    assert not other.is_student
    with pytest.raises(UserError, match="sampler 'consistency': model 'student' is a diffusion model"):
        other.plan()


def test_guidance_wants_a_model_that_saw_the_null_label() -> None:
    with pytest.raises(UserError, match="never saw the null label"):
        load("digits-teacher", "cpu").sample(2, guidance_scale=2.0)


def test_a_diffusion_model_is_not_sampled_as_a_consistency_model() -> None:
    with pytest.raises(UserError, match="is a diffusion model; leave the sampler out"):
        gaussian_model(Teacher).sample(1, sampler="consistency")


def test_loading_leaves_the_generator_alone() -> None:
    before = torch.get_rng_state()
    load("digits", "cpu")
    load_features("digits-classifier")
    assert torch.equal(torch.get_rng_state(), before)


# Classes by name, and those that no training sample had


def named_model(classes: tuple[str, ...] = ("cat", "dog", "1"), unseen: tuple[int, ...] = ()) -> Model:
    model = gaussian_model(Student, num_classes=len(classes))
    card = dataclasses.replace(model.card, classes=classes, unseen=unseen)
    return dataclasses.replace(model, card=card)


def labels_of(model: Model, n: int, labels: Any = None) -> list[int]:
    found = model.labels(n, labels)
    assert found is not None
    return found.tolist()


def test_labels_by_name() -> None:
    model = named_model()
    assert labels_of(model, 3, ["dog", 0, "1"]) == [1, 0, 2] and labels_of(model, 2, "cat") == [0, 0]
    assert labels_of(model, 2, np.array(["dog", "cat"])) == [1, 0]
    assert labels_of(model, 3, [np.int64(2), torch.tensor(1)]) == [2, 1, 2]
    assert [label_of(text, model.card.classes) for text in ("dog", "1", "2", "x")] == ["dog", "1", 2, "x"]
    for labels, words in (
        ("dgo", r"no such class \(did you mean 'dog'\?\); there are: cat, dog, 1"),
        ([True, False], "labels True: give whole numbers or names"),
        (np.array([True]), "labels True: give whole numbers or names"),
        (torch.tensor([0.0]), r"labels 0\.0: give whole numbers"),
        ([None], "labels None: give whole numbers"),
        ([torch.tensor(True)], "labels True: give whole numbers"),
        (b"cat", "has the classes 0..2"),
        ([0, 10**30], "has the classes 0..2"),
    ):
        with pytest.raises(UserError, match=words):
            model.labels(2, labels)
    with pytest.raises(UserError, match=r"the classes \[0, 2\] of model 'student' have this name"):
        named_model(("crane", "dog", "crane")).labels(1, "crane")


def test_classes_without_samples_are_not_sampled_unless_asked_for() -> None:
    model = named_model(("a", "b", "c"), unseen=(1,))
    assert labels_of(model, 4) == [0, 2, 0, 2] and labels_of(model, 2, "b") == [1, 1]


def test_cards_whose_classes_cannot_be() -> None:
    card = gaussian_model(Student, num_classes=2).card
    for changes in ({"classes": ("a",)}, {"unseen": (2,)}, {"unseen": (0, 1)}):
        with pytest.raises(ValueError):
            dataclasses.replace(card, **changes)
