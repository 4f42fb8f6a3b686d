"""The cost of a training: the objectives' own figures beside counted FLOPs, and a student's share of its teacher's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from gaussian_models import Student, Teacher, gaussian_model
from torch.utils.flop_counter import FlopCounterMode

from trigflow import load
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.evaluation.training_compute import forward_flops, training_forwards, training_share
from trigflow.models.model import Model
from trigflow.networks import NETWORKS
from trigflow.objectives import OBJECTIVES, Batch
from trigflow.system.config import Component, build


def flops(run: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("network", ["dit", "unet"])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in OBJECTIVES),
        ("scd", {"guidance_scale": 2.0}),
        ("sct", {"derivative": "finite_difference"}),
        ("vsd", {"weighting": "sid", "guidance_scale": 2.0}),
        ("vsd", {"vsd_P_mean": -0.8, "vsd_P_std": 1.6}),
        ("scd_vsd", {"scd_share": 0.5, "target_halflife": 100}),
    ],
)
def test_the_cost_of_an_image_is_that_of_counted_flops(
    name: str, network: str, options: dict[str, Any]
) -> None:
    """To a twentieth: the first layer needs no gradient of its input, embeddings of time and label are cheap."""
    objective = build(Component(name, dict(options)), OBJECTIVES, "objective")
    sizes = {"dit": {"width": 96, "depth": 4}, "unet": {"channels": 16}}[network]
    nets = {
        role: TrigFlowPrecond(NETWORKS[network]((3, 8, 8), num_classes=2, **sizes))
        for role in ("net", "fake", "target", "teacher")
    }
    batch = Batch(torch.randn(4, 3, 8, 8), {"labels": torch.arange(4) % 2})

    def step() -> None:
        sum(objective(nets, batch, 0, SampleRandom(0, torch.arange(4))).losses.values()).backward()

    forward = flops(lambda: nets["net"](batch.x_0, torch.ones(4), **batch.cond))
    assert flops(step) / forward == pytest.approx(objective.forwards_per_image, rel=0.05)


def trained(kind: Any, nimg: int, objective: str, **train: Any) -> Model:
    model = gaussian_model(kind)
    recipe = {"objective": {"name": objective, "options": {}}, "train": train}
    return dataclasses.replace(model, card=dataclasses.replace(model.card, nimg=nimg, recipe=recipe))


def test_forwards_are_images_times_passes_and_the_teachers_samples() -> None:
    teacher = trained(Teacher, 1000, "diffusion")
    assert training_forwards(teacher) == 3000
    assert training_forwards(trained(Student, 100, "scd"), teacher) == 500
    assert training_forwards(trained(Student, 100, "sct"), None) == 400
    assert training_forwards(trained(Student, 100, "scd", synthetic=10), teacher) == 500 + 10 * 63


def test_earlier_trainings_count() -> None:
    """Of a student that went on with another one; in all, the one before that as well."""
    first, last = trained(Student, 100, "scd"), trained(Student, 10, "sct")
    unknown = trained(Student, 0, "scd")
    for earlier, total in ((first, 500 + 40), (unknown, None)):
        card = dataclasses.replace(last.card, earlier=earlier.card.phases)
        assert training_forwards(dataclasses.replace(last, card=card)) == total
        assert len(card.phases) == 2


@pytest.mark.parametrize(
    "model",
    [
        gaussian_model(Student),
        trained(Student, 0, "scd"),
        trained(Student, 100, "package.module:Own"),
        trained(Student, 100, "scd", synthetic=10),
    ],
)
def test_a_card_that_does_not_tell(model: Model) -> None:
    assert training_forwards(model) is None


def test_a_teacher_that_cannot_have_made_the_samples_does_not_tell() -> None:
    """A student of a guided teacher, beside one that never saw the null label: no number, and no complaint either."""
    student = trained(Student, 100, "scd", synthetic=10)
    guided = {"objective": {"name": "scd", "options": {"guidance_scale": 2.0}}}
    card = dataclasses.replace(student.card, recipe={**student.card.recipe, **guided})
    student = dataclasses.replace(student, card=card)
    teacher = load("digits-teacher", "cpu")
    teacher.card.recipe["train"]["label_dropout"] = 0
    assert training_forwards(student, teacher) is None and training_share(student, teacher) is None


def test_steps_that_update_fewer_networks_cost_less() -> None:
    """vsd: 8 passes for an image of a step that updates both, 4 of one that updates fake alone."""
    student = trained(Student, 100, "vsd")
    periods: dict[str, Any]
    for periods, mean in (
        ({}, 8),
        ({"optimizers": {"net": {"update_period": 5}}}, (8 + 4 * 4) / 5),
        ({"optimizers": {"net": {"update_period": 5}}, "optimizer": {"update_period": 2}}, None),
        ({"optimizers": "none", "optimizer": None}, 8),
    ):
        recipe = {**student.card.recipe, **periods}
        model = dataclasses.replace(student, card=dataclasses.replace(student.card, recipe=recipe))
        # net in turns 0, 5; fake in 0, 2, 4, 6, 8 of ten.
        expected = 100 * (mean or (8 + 4 * 4 + 5 + 4 * 1) / 10)
        assert training_forwards(model) == pytest.approx(expected)


def test_networks_without_products_have_no_share() -> None:
    assert training_share(trained(Student, 100, "scd"), trained(Teacher, 100, "diffusion")) is None


def test_the_share_of_the_shipped_student() -> None:
    student, teacher = load("digits"), load("digits-teacher")
    theirs, ours = training_forwards(teacher), training_forwards(student, teacher)
    assert theirs is not None and ours is not None and forward_flops(student) == forward_flops(teacher)
    assert training_share(student, teacher) == pytest.approx(ours / theirs)
    small = dataclasses.replace(student, card=dataclasses.replace(student.card, nimg=0))
    assert training_share(small, teacher) is None
    assert forward_flops(student) == pytest.approx(2 * student.num_parameters, rel=0.02)
