"""Score distillation against closed forms of a Gaussian and a slow reference, in float64."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from test_objectives import SIGMA_DATA, points, small_precond
from torch import Tensor, nn

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.objectives import SCDVSD, VSD, Batch, Objective
from trigflow.objectives.cost import mean_forwards
from trigflow.system.errors import UserError

WEIGHTINGS = ("vsd", "dmd", "sid")
T_MAX = math.atan(80 / SIGMA_DATA)
S_0 = 0.3


class StudentF(nn.Module):
    """f(x_t, t) = x_t std / sigma_data: the samples of one step are N(0, std^2)."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = nn.Parameter(torch.tensor(std, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x * (t.cos()[:, None] - self.std / SIGMA_DATA) / t.sin()[:, None]


class DiffusionF(StudentF):
    """F of the velocity of data N(0, std^2)."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        cos, sin = t.cos()[:, None], t.sin()[:, None]
        variance = (cos * self.std) ** 2 + (sin * SIGMA_DATA) ** 2
        return x * cos * sin * (SIGMA_DATA**2 - self.std**2) / variance


def gaussian(student: float, fake: float) -> dict[str, TrigFlowPrecond]:
    networks = {"net": StudentF(student), "teacher": DiffusionF(S_0)}
    networks |= {"fake": DiffusionF(fake), "fake_mid": DiffusionF(fake)}
    return {name: TrigFlowPrecond(one, sigma_data=SIGMA_DATA).double() for name, one in networks.items()}


def log_normal(random: SampleRandom, stream: str, P_mean: float, P_std: float) -> Tensor:
    normal = torch.special.ndtri(random.uniform(stream, dtype=torch.float64))
    return torch.atan((P_mean + P_std * normal).exp() / SIGMA_DATA)


def of_std(loss: Tensor, net: TrigFlowPrecond) -> float:
    std = net.network.std
    assert isinstance(std, Tensor)
    return float(torch.autograd.grad(loss, std)[0])


def many(count: int, seed: int = 0) -> tuple[Batch, SampleRandom]:
    return Batch(torch.zeros(count, 6, dtype=torch.float64)), SampleRandom(seed, torch.arange(count))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_no_gradient_where_student_and_fake_are_the_teachers(weighting: Any) -> None:
    nets, (batch, random) = gaussian(S_0, S_0), many(50)
    output = VSD(weighting=weighting)(nets, batch, 0, random)
    rounding = 1e-14 if weighting == "sid" else 0  # the sum of its paths
    assert abs(of_std(output.losses["net"], nets["net"])) <= rounding
    assert output.logs["output_gradient"].abs().max() <= rounding


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("std", [0.15, 0.45])
def test_the_gradient_of_a_gaussian_is_its_closed_form(weighting: Any, std: float) -> None:
    """Fake is the model of the student's samples: dL/dstd, and its sign, towards the teacher's."""
    nets, (batch, random) = gaussian(std, std), many(400)
    objective = VSD(weighting=weighting, sid_alpha=1.2)
    output = objective(nets, batch, 0, random)

    eps, z = (random.normal(name, (6,), torch.float64) for name in ("x_T", "vsd z"))
    t = log_normal(random, "vsd t", objective.vsd_P_mean, objective.vsd_P_std)[:, None]
    x_0, cos, sin = std * eps, t.cos(), t.sin()
    x_t = cos * x_0 + sin * SIGMA_DATA * z
    of_fake, of_teacher = (cos * s**2 / (cos**2 * s**2 + sin**2 * SIGMA_DATA**2) for s in (std, S_0))
    mean = (x_0 - of_teacher * x_t).abs().mean(1, keepdim=True)
    d = of_teacher - of_fake
    gradient = {
        "vsd": -d * x_t / (sin * SIGMA_DATA),
        "dmd": -d * x_t / mean,
        "sid": d
        * (cos * (of_teacher * x_t - x_0 - 1.2 * d * x_t) + x_t * (of_teacher * cos - 1 - 1.2 * d * cos))
        / mean,
    }[weighting]
    found = of_std(output.losses["net"], nets["net"])
    assert found == pytest.approx(float((gradient * eps).mean()), rel=1e-10)
    assert (found > 0) == (std > S_0)
    torch.testing.assert_close(output.logs["loss"], 0.5 * gradient.square().mean(1))


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("start", [0.15, 0.45])
def test_training_ends_at_the_teacher(weighting: Any, start: float) -> None:
    """Both networks by steps of Adam: the student's std ends at the teacher's, to 2 %."""
    nets = gaussian(start, S_0)
    objective = VSD(weighting=weighting, fake_adaptive_weight=False)
    optimisers = {
        name: torch.optim.Adam(nets[name].network.parameters(), lr=lr, betas=(0.5, 0.9))
        for name, lr in (("net", 0.01), ("fake", 0.02))
    }
    for step in range(150):
        batch, random = many(200, step)
        losses = objective(nets, batch, 0, random).losses
        for name, optimiser in optimisers.items():
            optimiser.zero_grad()
            optimiser.param_groups[0]["lr"] *= 0.98
            losses[name].backward(inputs=[*nets[name].network.parameters()])  # type: ignore[no-untyped-call]
            optimiser.step()
    assert float(nets["net"].network.std.detach()) == pytest.approx(S_0, rel=0.02)  # type: ignore[operator]


def test_the_second_step_starts_from_samples_of_the_first() -> None:
    """With f = x_t std / sigma_data: x_0 = (std / sigma_data) (cos(t_mid) std eps + sin(t_mid) z), and dx_0/dstd takes
    the start of the second step as given."""
    std, t_mid = 0.45, 0.7
    nets, (batch, random) = gaussian(std, std), many(400)
    objective = VSD(weighting="vsd", second_share=0.25, t_mid=t_mid)
    output = objective(nets, batch, 0, random)

    eps, z_mid, z = (random.normal(name, (6,), torch.float64) for name in ("x_T", "z_mid", "vsd z"))
    start = eps.clone()  # x_t / sigma_data
    start[:100] = (math.cos(t_mid) * std / SIGMA_DATA * eps + math.sin(t_mid) * z_mid)[:100]
    t = log_normal(random, "vsd t", objective.vsd_P_mean, objective.vsd_P_std)[:, None]
    cos, sin = t.cos(), t.sin()
    x_t = cos * std * start + sin * SIGMA_DATA * z
    of_fake, of_teacher = (cos * s**2 / (cos**2 * s**2 + sin**2 * SIGMA_DATA**2) for s in (std, S_0))
    gradient = (of_fake - of_teacher) * x_t / (sin * SIGMA_DATA)
    found = of_std(output.losses["net"], nets["net"])
    assert found == pytest.approx(float((gradient * start).mean()), rel=1e-10)
    t_start = torch.full((400,), T_MAX, dtype=torch.float64)
    t_start[:100] = t_mid
    of_F = t_start.sin() * SIGMA_DATA * gradient.square().mean(1).sqrt()
    torch.testing.assert_close(output.logs["output_gradient"], of_F)


# A slow reference, image by image


def networks(**options: Any) -> dict[str, TrigFlowPrecond]:
    nets = {
        "net": small_precond("mlp", 3, **options),
        "fake": small_precond("mlp", 3, normalization="adagn", **options),
        "fake_mid": small_precond("mlp", 3, normalization="adagn", **options),
        "teacher": small_precond("mlp", 3),
    }
    with torch.no_grad():
        for parameter in nets["teacher"].parameters():
            parameter.mul_(0.9)
        for name in ("fake", "fake_mid"):
            nets[name].adaptive_weight.linear.weight.normal_(std=0.1)
        for parameter in nets["fake_mid"].network.parameters():
            parameter.mul_(1.1)
    return nets


def given(count: int = 5) -> tuple[Batch, SampleRandom]:
    x_0, random = points((6,), count)
    return Batch(x_0, {"labels": torch.arange(count) % 3}), random


def F_of(net: TrigFlowPrecond, x: Tensor, t: Tensor, label: Tensor, s: Tensor | None = None) -> Tensor:
    cond = {} if s is None else {"guidance": s[None]}
    F: Tensor = net.network(x[None] / SIGMA_DATA, t[None], labels=label[None], **cond)[0]
    return F


def f_of(net: TrigFlowPrecond, x: Tensor, t: Tensor, label: Tensor, s: Tensor | None) -> Tensor:
    return t.cos() * x - t.sin() * SIGMA_DATA * F_of(net, x, t, label, s)


def D_teacher_of(net: TrigFlowPrecond, x: Tensor, t: Tensor, label: Tensor, s: float | Tensor) -> Tensor:
    own, null = F_of(net, x, t, label), F_of(net, x, t, torch.full_like(label, 3))
    return t.cos() * x - t.sin() * SIGMA_DATA * (null + s * (own - null))


def parameters_of(objective: VSD, nets: Mapping[str, TrigFlowPrecond]) -> dict[str, list[Tensor]]:
    found = {name: [*nets[name].parameters()] for name in objective.trains[1:]}
    return {"net": [*nets["net"].network.parameters()], **found}


def reference(
    objective: VSD, nets: Mapping[str, TrigFlowPrecond], batch: Batch, random: SampleRandom
) -> dict[str, list[Tensor]]:
    """Gradients of net and the models of its samples with respect to their weights."""
    times = {
        name: (getattr(objective, f"{name}_P_mean"), getattr(objective, f"{name}_P_std"))
        for name in ("vsd", "fake")
    }
    shared = times["vsd"] == times["fake"] and objective.weighting != "sid"
    at = "fake" if shared else "vsd"
    x_T, z_mid = (SIGMA_DATA * random.normal(name, (6,), torch.float64) for name in ("x_T", "z_mid"))
    zs = {name: SIGMA_DATA * random.normal(f"{name} z", (6,), torch.float64) for name in times}
    ts = {name: log_normal(random, f"{name} t", *values) for name, values in times.items()}
    u = random.uniform("guidance", dtype=torch.float64)
    parameters = parameters_of(objective, nets)
    total = {name: [torch.zeros_like(one) for one in ones] for name, ones in parameters.items()}
    count, t_max = len(x_T), torch.tensor(T_MAX, dtype=torch.float64)
    second = round(objective.second_share * count)
    for i in range(count):
        label, scale, inputs = batch.cond["labels"][i], objective.guidance_scale, None
        if isinstance(scale, tuple):
            scale = inputs = scale[0] + (scale[1] - scale[0]) * u[i]
        x_0 = f_of(nets["net"], x_T[i], t_max, label, inputs)
        name = "fake_mid" if i < second else "fake"
        if i < second:
            t_mid = torch.tensor(objective.t_mid, dtype=torch.float64)
            x_mid = t_mid.cos() * x_0.detach() + t_mid.sin() * z_mid[i]
            x_0 = f_of(nets["net"], x_mid, t_mid, label, inputs)
        t, z, x = ts["fake"][i], zs["fake"][i], x_0.detach()
        fake, images = nets[name], second if i < second else count - second
        error = F_of(fake, t.cos() * x + t.sin() * z, t, label, inputs)
        error = (error - (t.cos() * z - t.sin() * x) / SIGMA_DATA).square().mean()
        logvar = fake.adaptive_weight(t[None])[0]
        loss = error * (-logvar).exp() + logvar if objective.fake_adaptive_weight else error
        gradients = {name: torch.autograd.grad(loss * count / images, parameters[name], allow_unused=True)}

        t, z = ts[at][i], zs[at][i]

        def denoised(
            x: Tensor,
            t: Tensor = t,
            z: Tensor = z,
            label: Any = label,
            s: Any = scale,
            given: Any = inputs,
            fake: Any = fake,
        ) -> tuple[Tensor, Tensor]:
            x_t = t.cos() * x + t.sin() * z
            of_fake = t.cos() * x_t - t.sin() * SIGMA_DATA * F_of(fake, x_t, t, label, given)
            return of_fake, D_teacher_of(nets["teacher"], x_t, t, label, s)

        D_fake, D = (one.detach() for one in denoised(x))
        mean = (x - D).abs().mean()

        def sid(x: Tensor, denoised: Any = denoised, mean: Tensor = mean) -> Tensor:
            D_fake, D = denoised(x)
            return ((D - D_fake) * ((D - x) - objective.sid_alpha * (D - D_fake))).sum() / mean

        direction = (D_fake - D) / (mean if objective.weighting == "dmd" else t.sin() * SIGMA_DATA)
        if objective.weighting == "sid":
            direction = torch.autograd.functional.jacobian(sid, x)  # type: ignore[no-untyped-call]
        gradients["net"] = torch.autograd.grad(x_0, parameters["net"], grad_outputs=direction / 6)
        for name, ones in gradients.items():
            for sum_, one in zip(total[name], ones, strict=True):
                sum_ += 0 if one is None else one / count
    return total


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scale", [1.0, 2.0, (1.0, 2.0)], ids=["unguided", "one", "range"])
@pytest.mark.parametrize("one_pass", [False, True], ids=["two", "one-pass"])
@pytest.mark.parametrize("second_share", [0.0, 0.6])
def test_gradients_are_those_of_a_slow_reference(
    weighting: Any, scale: Any, one_pass: bool, second_share: float
) -> None:
    nets = networks(**({"guidance_input": True} if isinstance(scale, tuple) else {}))
    batch, random = given()
    times = {"vsd_P_mean": -0.8, "vsd_P_std": 1.6} if one_pass else {}
    second = {"second_share": second_share, "t_mid": 0.9}
    objective = VSD(weighting=weighting, guidance_scale=scale, sid_alpha=1.2, **second, **times)
    losses = objective(nets, batch, 0, random).losses
    parameters = parameters_of(objective, nets)
    for name, expected in reference(objective, nets, batch, random).items():
        found = torch.autograd.grad(losses[name], parameters[name], allow_unused=True)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(
                torch.zeros_like(other) if one is None else one, other, rtol=1e-9, atol=1e-13
            )
        assert sum(float(one.abs().sum()) for one in expected) > 1e-3


# What is due, and what it costs


@pytest.mark.parametrize(
    "objective",
    [VSD(), VSD(weighting="sid"), VSD(vsd_P_mean=-0.8, vsd_P_std=1.6), VSD(second_share=0.4), SCDVSD()],
)
def test_a_step_of_one_network_has_its_loss_of_a_full_step(objective: VSD) -> None:
    nets, (batch, random) = networks(), given()
    whole = objective(nets, batch, 0, random)
    for name in objective.trains:
        alone = objective(nets, Batch(batch.x_0, batch.cond, due=frozenset({name})), 0, random)
        assert alone.losses.keys() == {name} and torch.equal(alone.losses[name], whole.losses[name])
        logged = {"loss" if name == "net" else f"loss_{name}"}
        assert {key for key in alone.logs if key in ("loss", "loss_fake", "loss_fake_mid")} == logged
    other = torch.autograd.grad(alone.losses[name], [*nets["net"].parameters()], allow_unused=True)
    assert all(gradient is None for gradient in other)
    none = objective(nets, Batch(batch.x_0, batch.cond, due=frozenset()), 0, random)
    assert not none.losses and none.logs.keys() == {"t"}


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("one_pass", [False, True])
@pytest.mark.parametrize("second_share", [0.0, 0.6])
def test_the_cost_is_that_of_the_calls(
    weighting: Any, scale: float, one_pass: bool, second_share: float
) -> None:
    """A call without a graph is 1, with one 3, and 2 where only the gradient of its input is taken."""
    nets, (batch, random) = networks(), given()
    times = {"vsd_P_mean": -0.8, "vsd_P_std": 1.6} if one_pass else {}
    objective = VSD(weighting=weighting, guidance_scale=scale, second_share=second_share, **times)
    cost = 0.0

    def count(module: object, args: tuple[Tensor, ...]) -> None:
        nonlocal cost
        each = 1 if not torch.is_grad_enabled() else 2 if args[0].requires_grad else 3
        cost += each * len(args[0]) / len(batch.x_0)

    for net in nets.values():
        net.network.register_forward_pre_hook(count)
    for due in map(frozenset, (objective.trains, ("net",), objective.trains[1:], ())):
        cost = 0.0
        objective(nets, Batch(batch.x_0, batch.cond, due=due), 0, random)
        assert cost == pytest.approx(objective.forwards_of(due), rel=1e-12), due
    assert objective.forwards_per_image == objective.forwards_of(frozenset(objective.trains))


def test_dropout_of_two_steps_is_that_of_each_image() -> None:
    """The first images of a pass have the masks of their own numbers, in both steps."""
    nets, (batch, random) = networks(dropout=0.3), given()
    for net in nets.values():
        net.train()
    objective = VSD(second_share=0.4)
    one, other = (objective(nets, batch, 0, random).losses for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in objective.trains)


def test_two_steps_need_two_images_in_a_pass() -> None:
    nets, (batch, random) = networks(), given(1)
    with pytest.raises(UserError, match="second_share needs passes of two images"):
        VSD(second_share=0.4)(nets, batch, 0, random)
    batch, random = given(2)
    few = VSD(second_share=0.01)(nets, batch, 0, random)
    assert few.losses.keys() == {"net", "fake", "fake_mid"}


class Costly(Objective):
    """Trains up to three networks; a step costs another amount for each set of them."""

    is_consistency = False

    def __init__(self, count: int) -> None:
        self.trains = ("a", "b", "c")[:count]

    def forwards_of(self, due: frozenset[str]) -> float:
        return 1 + sum({"a": 3, "b": 50, "c": 700}[name] for name in due) + 0.1 * len(due) ** 2

    def __call__(self, *args: object) -> Any:
        raise NotImplementedError


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_cost_is_that_of_all_turns(count: int) -> None:
    objective = Costly(count)
    for periods in itertools.product((1, 2, 3, 4, 6), repeat=count):
        of = dict(zip(objective.trains, periods, strict=True))
        turns = [frozenset(name for name in of if turn % of[name] == 0) for turn in range(12)]
        expected = sum(map(objective.forwards_of, turns)) / 12
        assert mean_forwards(objective, of) == pytest.approx(expected, rel=1e-12)
    assert mean_forwards(objective, {}) == objective.forwards_of(frozenset(objective.trains))
