"""Students that take the guidance scale as an input: their networks, their objective, their samples."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gaussian_models import S_0, SIGMA_DATA, GaussianNetwork, Student, Teacher, gaussian_model, nfe_of
from pydantic import ValidationError
from test_networks import CASES, B, build, inputs
from torch import Tensor, nn

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset
from trigflow.data.codecs import IdentityCodec
from trigflow.dual import MODES, value_and_tangent
from trigflow.evaluation.evaluate import evaluate
from trigflow.models.model import Model, load
from trigflow.models.shipped import SHIPPED
from trigflow.networks import NETWORKS
from trigflow.networks.magnitude import MPGuidance
from trigflow.objectives import SCM, Batch
from trigflow.objectives.diffusion import sample_times
from trigflow.system.errors import UserError
from trigflow.tools.doctor import diagnose

CPU = torch.device("cpu")
ONE_OF_EACH = (
    *("mlp-vector", "unet-2d", "unet-gain", "ddpmpp-2d", "ddpmpp-published", "dit-2d", "edm2-2d"),
    "edm2-published",
)
each_network = pytest.mark.parametrize("case", ONE_OF_EACH)
SCALES = torch.tensor([1.0, 1.4, 2.0], dtype=torch.float64)


# Networks


def test_every_network_of_the_table_is_tested() -> None:
    assert {CASES[case][0] for case in ONE_OF_EACH} == set(NETWORKS)


@each_network
def test_a_fresh_input_changes_nothing_and_learns_from_the_first_step(case: str) -> None:
    """Exactly nothing, whatever the scale; and yet its last layer has a gradient that differs between scales."""
    plain, (x, t) = build(case, num_classes=4), inputs(case)
    net, labels = build(case, num_classes=4, randomized=False, guidance_input=True), torch.tensor([0, 3, 4])
    fresh = {
        name: value for name, value in net.state_dict().items() if name.startswith("embedding.guidance.")
    }
    assert fresh.keys() == net.state_dict().keys() - plain.state_dict().keys()
    net.load_state_dict(fresh | plain.state_dict())
    for scales in (SCALES, 2 * SCALES):
        assert torch.equal(net(x, t, labels, guidance=scales), plain(x, t, labels))
    learning = [name for name in fresh if name.endswith("weight")]
    last = dict(net.named_parameters())[learning[0]]
    gradients = [torch.autograd.grad(net(x, t, labels, s).sum(), last)[0] for s in (SCALES, 2 * SCALES)]
    assert gradients[0].abs().min() > 0 and not torch.allclose(*gradients)


@each_network
def test_the_scale_is_an_input(case: str) -> None:
    net, (x, t) = build(case, num_classes=4, guidance_input=True), inputs(case)
    labels = torch.tensor([0, 1, 4])
    output = net(x, t, labels, SCALES)
    assert not torch.allclose(output, net(x, t, labels, SCALES.flip(0)))
    assert torch.equal(net(x, t, guidance=SCALES), net(x, t, torch.full((B,), 4), SCALES))
    output.square().sum().backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    torch.testing.assert_close(net(x, t, labels, SCALES)[1:], net(x[1:], t[1:], labels[1:], SCALES[1:]))


@each_network
def test_a_scale_must_be_given_where_it_is_taken_and_nowhere_else(case: str) -> None:
    x, t = inputs(case)
    with pytest.raises(UserError, match="guidance_input=false"):
        build(case)(x, t, guidance=SCALES)
    with pytest.raises(UserError, match="guidance_input=true"):
        build(case, guidance_input=True)(x, t)


@each_network
def test_the_scale_has_no_tangent_in_any_mode(case: str) -> None:
    """The derivative is that along (x, t) at a scale that is held, and a direction of zeros for it is the same."""
    net, (x, t) = build(case, guidance_input=True), inputs(case)
    along = (torch.randn_like(x), torch.ones_like(t))
    exact = value_and_tangent(lambda x, t: net(x, t, guidance=SCALES), (x, t), along)
    zeros = {"guidance": torch.zeros_like(SCALES)}
    for mode in MODES:
        for still in ({}, zeros):
            cond = {"guidance": SCALES}
            found = value_and_tangent(net, (x, t), along, mode=mode, cond=cond, cond_tangents=still)
            torch.testing.assert_close(found.value, exact.value)
            rtol = 1e-5 if mode == "finite_difference" else 1e-9
            scale = float(exact.tangent.abs().max())
            torch.testing.assert_close(found.tangent, exact.tangent, rtol=rtol, atol=rtol * scale)


@pytest.mark.parametrize("case", ["mlp-vector", "edm2-2d"])
def test_the_doctor_gives_a_scale(case: str) -> None:
    assert not diagnose(build(case, guidance_input=True), data_shape=CASES[case][1], device="cpu").findings


def test_the_sum_keeps_the_magnitude() -> None:
    """Of a time's embedding of magnitude 1, whatever the weights have learned, also where all go the same way."""
    join = MPGuidance(64, 4096)
    emb = torch.randn(8, 4096)
    for size in (0.0, 0.5, 3.0):
        for shape in ((4096, 64), (4096, 1)):
            join.weight.data = size * torch.randn(shape).expand(4096, 64)
            magnitude = join(emb, torch.linspace(1, 2, 8)).square().mean(1).sqrt()
            assert ((magnitude - 1).abs() < 0.05).all()


# The objective, where all is known: for equal variances, guidance moves the mean of a class to null + s (mean - null)


class GuidedStudent(GaussianNetwork):
    """The consistency function of the guided flow; keeps the scales that it was told."""

    guidance_input = True
    told: Tensor

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        assert guidance is not None and labels is not None
        self.told = guidance
        x_t, t = SIGMA_DATA * x, t[:, None]
        mean = self.guided(torch.where(labels < 3, labels, 0)[:, None], guidance[:, None])
        sd = (t.cos() ** 2 * S_0**2 + t.sin() ** 2 * SIGMA_DATA**2).sqrt()
        f = mean + (x_t - t.cos() * mean) * S_0 / sd
        return (t.cos() * x_t - f) / (t.sin() * SIGMA_DATA)

    def guided(self, mean: Tensor, s: Tensor) -> Tensor:
        return s * mean  # null + s (mean - null), where null is 0


class WeakTeacher(Teacher):
    """All means are one lower: a guide with an error."""

    def mean(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return super().mean(x, labels) - 1


class AutoguidedStudent(GuidedStudent):
    """Guided by the weak teacher: weak + s (mean - weak), where weak = mean - 1."""

    def guided(self, mean: Tensor, s: Tensor) -> Tensor:
        return mean - 1 + s


def precond(network: nn.Module) -> TrigFlowPrecond:
    return TrigFlowPrecond(network, sigma_data=SIGMA_DATA).double()


def gaussian_batch(count: int = 12) -> tuple[Batch, SampleRandom]:
    random = SampleRandom(3, torch.arange(count))
    labels = torch.arange(count) % 3
    return Batch(
        S_0 * random.normal("data", (2,), torch.float64) + labels[:, None], {"labels": labels}
    ), random


def objective(guidance_scale: Any = (1, 2), **fields: Any) -> SCM:
    plain = {"warmup": 0, "adaptive_weight": False, "normalization": "none"}
    return SCM(velocity="teacher", guidance_scale=guidance_scale, **(plain | fields))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("guide", [None, WeakTeacher])
def test_the_tangent_of_the_exact_guided_student_is_zero(mode: str, guide: type[WeakTeacher] | None) -> None:
    """For every scale of the range: the teacher is guided by the very scale that the student is told."""
    batch, random = gaussian_batch()
    nets = {
        "net": precond((AutoguidedStudent if guide else GuidedStudent)(3)),
        "teacher": precond(Teacher(3)),
    }
    nets |= {} if guide is None else {"guide": precond(guide(3))}
    norms = objective((0.5, 4), derivative=mode)(nets, batch, 0, random).logs["tangent_norm"]
    assert norms.max() < (1e-6 if mode == "finite_difference" else 1e-11)
    wrong = precond(GuidedStudent(3) if guide else AutoguidedStudent(3))
    assert objective((0.5, 4))({**nets, "net": wrong}, batch, 0, random).logs["tangent_norm"].median() > 1e-2


def test_scales_are_uniform_in_the_range_and_have_a_stream_of_their_own() -> None:
    net, teacher = precond(GuidedStudent(3)), precond(Teacher(3))
    batch, random = gaussian_batch(4000)
    logs = objective((1, 3))({"net": net, "teacher": teacher}, batch, 0, random).logs
    told: Tensor = net.network.told
    assert told.dtype == torch.float64
    assert told.min() >= 1 and told.max() <= 3
    share = (told.sort().values - 1) / 2 - torch.linspace(0, 1, 4000, dtype=torch.float64)
    assert share.abs().max() < 0.03  # the test of Kolmogorov and Smirnov: 1.63 / sqrt(4000) at one percent
    correlations = torch.corrcoef(torch.stack([told, logs["t"], batch.x_0[:, 0]]))
    assert correlations[0, 1:].abs().max() < 0.05
    assert torch.equal(logs["t"], sample_times("lognormal", -1.0, 1.4, SIGMA_DATA, random)), "no other moves"


def test_a_scale_follows_its_image_not_its_place() -> None:
    net, teacher = build("mlp-vector", 3, guidance_input=True), build("mlp-vector", 3)
    nets = {"net": precond(net), "teacher": precond(teacher)}
    random = SampleRandom(3, torch.arange(12))
    x_0, labels = random.normal("data", (5,), torch.float64), torch.arange(12) % 3
    whole = objective()(nets, Batch(x_0, {"labels": labels}), 0, random).logs
    order = torch.tensor([7, 2, 11])
    some = Batch(x_0[order], {"labels": labels[order]}, step_images=12)
    part = objective()(nets, some, 0, SampleRandom(3, order)).logs
    for key, value in whole.items():
        torch.testing.assert_close(value[order], part[key], rtol=1e-9, atol=1e-12)


def test_the_cost_of_a_range_is_that_of_a_guided_teacher() -> None:
    assert objective((1, 2)).forwards_per_image == objective(2.0).forwards_per_image == 6
    assert objective(1.0).forwards_per_image == 5


@pytest.mark.parametrize(
    "scale", [[2, 1], [1, 1], [1], [1, 2, 3], [-1, 2], -1, "much", [1, "2"], True, 1e9, None]
)
def test_no_scale_and_no_range(scale: Any) -> None:
    with pytest.raises(ValidationError, match=r"a number from 0 to 1000, or a range \[low, high\]"):
        objective(scale)


def test_a_range_is_for_a_teacher() -> None:
    with pytest.raises(ValidationError, match="has no teacher to guide"):
        SCM(velocity="data", guidance_scale=(1, 2))


# The model


def guided_model(**changes: Any) -> Model:
    """The exact student of a guided teacher, for scales from 0.5 to 4."""
    model = gaussian_model(Student, num_classes=3)
    card = dataclasses.replace(model.card, guidance_range=(0.5, 4.0), **changes)
    network = TrigFlowPrecond(GuidedStudent(3), sigma_data=SIGMA_DATA).eval()
    return Model(network, IdentityCodec(SIGMA_DATA), card, "guided")


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 4.0])
def test_the_scale_reaches_the_samples_at_no_cost(scale: float) -> None:
    """Beside the guided teacher from the same noises, and the mean in closed form."""
    student, teacher = guided_model(), gaussian_model(Teacher, num_classes=3)
    samples = student.sample(3000, steps=1, labels=1, guidance_scale=scale)
    assert samples.mean().item() == pytest.approx(scale, abs=0.02)
    ends = teacher.sample(50, steps=256, labels=1, guidance_scale=scale)
    assert torch.allclose(samples[:50], ends, atol=1e-3 * (1 + scale))
    assert [nfe_of(student, student.plan(n, scale)) for n in (1, 2, 4)] == [1, 2, 4]


def test_the_default_is_the_cards_and_the_range_is_kept() -> None:
    model = guided_model()
    assert model.plan().guidance_scale == 1.0
    assert torch.equal(model.sample(8), model.sample(8, guidance_scale=1.0))
    x_t, labels = torch.randn(4, 2), torch.arange(4) % 3
    predicted = model.predict_x_0(x_t, 1.2, labels)
    guided = model.precond.denoised(x_t, torch.full((4,), 1.2), labels=labels, guidance=torch.ones(4))
    assert torch.equal(predicted, guided)
    for scale in (0.4, 4.1, float("nan")):
        with pytest.raises(
            UserError, match=r"'guided' was trained with scales of 0\.5 to 4; give one in this range"
        ):
            model.sample(1, guidance_scale=scale)


def test_scales_of_each_sample_are_those_of_the_whole() -> None:
    """Per sample, as synthetic data is made: a student that takes it, a guided teacher, an autoguided one."""
    teacher = gaussian_model(Teacher, num_classes=3)
    for model in (guided_model(), teacher, teacher.with_guide(gaussian_model(WeakTeacher, num_classes=3))):
        scales = torch.tensor([0.5, 2.0, 1.0, 2.0])
        plan = model.plan(4, 2.0)
        mixed = torch.cat(list(model.sample_batches(4, plan, seed=3, batch=3, scales=scales)))
        for k, scale in enumerate(scales.tolist()):
            same = model.sample(4, steps=4, seed=3, guidance_scale=scale)[k]
            torch.testing.assert_close(mixed[k], same, rtol=1e-5, atol=1e-5)


def test_scales_that_are_none() -> None:
    model = guided_model()
    for scales, message in (
        (torch.tensor([1.0, 9.0]), "guidance_scale 9: model 'guided' was trained with scales of"),
        (torch.tensor([math.nan, 1.0]), "guidance_scale nan"),
        (torch.ones(3), r"scales \(3,\): give one for each of 2 samples"),
    ):
        with pytest.raises(UserError, match=message):
            next(model.sample_batches(2, model.plan(1), scales=scales))
    for foreign in (torch.ones(2), [1.0, 2.0], "2"):
        with pytest.raises(UserError, match="give one number, the same for all samples"):
            model.sample(2, guidance_scale=foreign)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_and_their_scales(name: str) -> None:
    """MNIST's student takes one, sampled as its teacher is by default; older cards, which know of none, take none."""
    model = load(name, "cpu")
    assert model.guidance_range == ((1.0, 1.6) if name == "mnist" else None) and model.guide is None
    assert model.precond.guidance_input == (name == "mnist")
    if name == "mnist":
        assert model.plan().guidance_scale == load("mnist-teacher", "cpu").card.sampling.guidance_scale


def real(num: int = 2000) -> Dataset:
    random = SampleRandom(99, torch.arange(num))
    labels = torch.arange(num) % 3
    points = S_0 * random.normal("data", (2,)) + labels[:, None]
    return Dataset("gaussian", points, labels, 3, IdentityCodec(SIGMA_DATA))


def test_evaluation_compares_at_the_same_scale(tmp_path: Path) -> None:
    sampling = dataclasses.replace(guided_model().card.sampling, guidance_scale=1.5)
    student, teacher = guided_model(sampling=sampling), gaussian_model(Teacher, num_classes=3)
    common = {
        "steps": [1, 2],
        "num": 200,
        "seeds": 1,
        "data": real(),
        "progress": False,
        "features": "pixels",
    }
    for asked, scale in ((None, 1.5), (2.0, 2.0)):
        report = evaluate(student, teacher=teacher, guidance_scale=asked, **common)
        assert {row["guidance_scale"] for row in report["students"] + report["teachers"]} == {scale}
        assert [row["nfe"] for row in report["students"]] == [1, 2] and report["teachers"][0]["nfe"] == 126
        assert report["students"][0]["fd"] == pytest.approx(report["teachers"][0]["fd"], rel=0.02)
    plain = evaluate(gaussian_model(Student, num_classes=3), teacher=teacher, guidance_scale=2.0, **common)
    assert {row["guidance_scale"] for row in plain["students"]} == {1.0}, "one that takes none is as before"
