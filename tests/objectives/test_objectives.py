"""The objectives against closed forms, finite differences and their own algebra, in float64."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trigflow.core import flow
from trigflow.core.oracles import FiniteData, Gaussian
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.dual import value_and_tangent
from trigflow.networks import NETWORKS
from trigflow.objectives import OBJECTIVES, SCM, Batch, Diffusion, consistency_tangent, normalize_tangent
from trigflow.objectives.stable_target import stable_velocity
from trigflow.objectives.warmup import scaled_warmup
from trigflow.system.errors import UserError

SIGMA_DATA = 0.5
SMALL = {
    "mlp": ((6,), {"width": 16, "depth": 2}),
    "unet": ((2, 8, 8), {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1}),
    "dit": ((2, 8, 8), {"patch": 2, "width": 16, "depth": 2, "heads": 2}),
}


def small_precond(name: str, num_classes: int = 0, **options: object) -> TrigFlowPrecond:
    """A small float64 network with random weights in every layer (the last one starts at zero)."""
    torch.manual_seed(0)
    shape, sizes = SMALL[name]
    network = NETWORKS[name](shape, num_classes, **sizes, **options)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return TrigFlowPrecond(network.double(), sigma_data=SIGMA_DATA).double()


def points(shape: tuple[int, ...], count: int = 6) -> tuple[Tensor, SampleRandom]:
    random = SampleRandom(3, torch.arange(count))
    return SIGMA_DATA * random.normal("data", shape, torch.float64), random


class GaussianF(nn.Module):
    """F of Gaussian data N(0, s0^2): of its velocity (a teacher) or its consistency function (a perfect student)."""

    num_classes = 0

    def __init__(self, s0: float, consistent: bool) -> None:
        super().__init__()
        self.s0 = s0
        self.consistent = consistent

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        cos, sin = t.cos()[:, None, None], t.sin()[:, None, None]
        variance = cos**2 * self.s0**2 + sin**2 * SIGMA_DATA**2
        if self.consistent:  # f = cos(t) x_t - sin(t) sigma_data F = x_t s0 / sqrt(variance)
            return x * (cos - self.s0 / variance.sqrt()) / sin
        return x * cos * sin * (SIGMA_DATA**2 - self.s0**2) / variance


@pytest.mark.parametrize("mode", ["dual", "func", "finite_difference"])
def test_tangent_of_the_exact_consistency_function_is_zero(mode: str) -> None:
    teacher = TrigFlowPrecond(GaussianF(0.3, consistent=False), sigma_data=SIGMA_DATA).double()
    student = TrigFlowPrecond(GaussianF(0.3, consistent=True), sigma_data=SIGMA_DATA).double()
    x_0, random = points((2, 3))
    scd = SCM(velocity="teacher", warmup=0, derivative=mode, adaptive_weight=False, normalization="none")
    output = scd({"net": student, "teacher": teacher}, Batch(x_0 * 0.6), 0, random)
    assert output.logs["tangent_norm"].max() < (1e-6 if mode == "finite_difference" else 1e-12)


@pytest.mark.parametrize("name", sorted(SMALL))
@pytest.mark.parametrize("mode", ["dual", "func", "finite_difference"])
def test_tangent_is_the_derivative_of_f_along_the_path(name: str, mode: str) -> None:
    net, teacher = small_precond(name), small_precond(name, normalization="adagn")
    x_0, random = points(SMALL[name][0])
    t = torch.linspace(0.1, 1.5, len(x_0), dtype=torch.float64)
    x_t = flow.interpolate(x_0, SIGMA_DATA * random.normal("z", SMALL[name][0], torch.float64), t)
    dx_dt = teacher.velocity(x_t, t)

    scale = t.cos() * t.sin()
    output = value_and_tangent(net, (x_t, t), (flow.expand(scale, x_t) * dx_dt, scale), mode=mode)
    g = consistency_tangent(x_t, t, output.value, output.tangent, dx_dt, SIGMA_DATA)

    h = 1e-5
    with torch.no_grad():
        ahead, behind = (net.denoised(x_t + s * h * dx_dt, t + s * h) for s in (1, -1))
    expected = flow.expand(t.cos(), x_t) * (ahead - behind) / (2 * h)
    torch.testing.assert_close(g.detach(), expected, rtol=1e-6, atol=1e-7)
    assert not output.tangent.requires_grad and output.value.requires_grad


def test_gradient_of_the_loss_is_minus_the_tangent() -> None:
    """grad of E|F - sg(F) - g|^2 / D is -2/D g^T dF, whatever the value of the loss."""
    net = small_precond("mlp")
    x_0, random = points((6,))
    sct = SCM(velocity="data", warmup=0, adaptive_weight=False, normalization="none")
    loss = sct({"net": net}, Batch(x_0), 0, random).losses["net"]
    parameters = list(net.network.parameters())
    gradients = torch.autograd.grad(loss, parameters)

    t = torch.special.ndtri(random.uniform("t", dtype=torch.float64))
    t = torch.atan((t * sct.P_std + sct.P_mean).exp() / SIGMA_DATA)
    z = SIGMA_DATA * random.normal("z", (6,), torch.float64)
    x_t, dx_dt = flow.interpolate(x_0, z, t), flow.velocity_target(x_0, z, t)
    _, dF = torch.func.jvp(net, (x_t, t), (dx_dt, torch.ones_like(t)))
    F = net(x_t, t)
    cos, sin = t.cos()[:, None], t.sin()[:, None]
    df_dt = -cos * (SIGMA_DATA * F - dx_dt) - sin * (x_t + SIGMA_DATA * dF)
    expected = torch.autograd.grad((F * (-2 * cos * df_dt / 6).detach()).sum(1).mean(), parameters)
    for gradient, reference in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)


def test_teacher_at_its_own_student_leaves_only_the_second_term() -> None:
    """Student = teacher: sigma_data F - dx/dt = 0, so with r = 0 nothing is left to learn."""
    net = small_precond("mlp")
    x_0, random = points((6,))
    scd = SCM(velocity="teacher", warmup=10, warmup_unit="images", adaptive_weight=False)
    start = scd({"net": net, "teacher": net}, Batch(x_0), 0, random)
    assert start.logs["tangent_norm"].max() < 1e-15
    assert scd({"net": net, "teacher": net}, Batch(x_0), 10, random).logs["tangent_norm"].min() > 1e-4


def test_a_target_gives_value_and_tangent_without_a_gradient() -> None:
    """Equal to the trained network it changes nothing; another one is what the trained network is drawn to."""
    net, other = small_precond("mlp"), small_precond("mlp", normalization="adagn")
    x_0, random = points((6,))
    fields: dict[str, Any] = {
        "velocity": "data",
        "warmup": 0,
        "adaptive_weight": False,
        "normalization": "none",
    }
    plain, targeted = SCM(**fields), SCM(**fields, target_halflife=100)
    parameters = list(net.network.parameters())
    expected = torch.autograd.grad(plain({"net": net}, Batch(x_0), 0, random).losses["net"], parameters)
    twin = copy.deepcopy(net)
    loss = targeted({"net": net, "target": twin}, Batch(x_0), 0, random).losses["net"]
    for gradient, reference in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)

    of_other = plain({"net": other}, Batch(x_0), 0, random)
    output = targeted({"net": net, "target": other}, Batch(x_0), 0, random)
    torch.testing.assert_close(output.logs["tangent_norm"], of_other.logs["tangent_norm"])
    output.losses["net"].backward()
    assert all(parameter.grad is None for parameter in other.parameters())
    assert targeted.forwards_per_image == plain.forwards_per_image + 1


def test_warmup_counts_images_or_steps() -> None:
    assert SCM(velocity="data", warmup=100, warmup_unit="images").tangent_warmup(50, 8) == 0.5
    assert SCM(velocity="data", warmup=100, warmup_unit="steps").tangent_warmup(200, 8) == 0.25
    assert SCM(velocity="data", warmup=100).tangent_warmup(10**9, 8) == 1.0
    assert SCM(velocity="data", warmup=0).tangent_warmup(0, 8) == 1.0


def test_warmup_follows_its_knots() -> None:
    scd = SCM(velocity="teacher", warmup=[[100, 0.5], [300, 0.75]], warmup_unit="images")
    rs = [scd.tangent_warmup(nimg, 8) for nimg in (0, 50, 100, 200, 300, 10**9)]
    assert rs == [0, 0.25, 0.5, 0.625, 0.75, 0.75]
    held = SCM(velocity="teacher", warmup=[[0, 0.7]])
    assert [held.tangent_warmup(nimg, 8) for nimg in (0, 10**9)] == [0.7, 0.7]
    assert scaled_warmup(((100, 0.5), (300, 0.75)), 0.1) == ((10, 0.5), (30, 0.75))
    assert scaled_warmup(100, 0.1) == 10


@pytest.mark.parametrize("warmup", [-1, [], [[10, 0]], [[10, 1.1]], [[10, 0.5], [10, 0.7]], [[10]], 1.5, "x"])
def test_a_warmup_that_cannot_be_is_refused(warmup: object) -> None:
    with pytest.raises(ValidationError, match="warmup"):
        SCM(velocity="teacher", warmup=warmup)  # type: ignore[arg-type]


@pytest.mark.parametrize("normalization", ["rms", "l2"])
def test_normalized_tangent_has_norm_below_one(normalization: str) -> None:
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    norm = 5 / math.sqrt(2) if normalization == "rms" else 5
    expected = g / torch.tensor([[norm + 0.1], [1.0]])
    torch.testing.assert_close(normalize_tangent(g, normalization), expected)


def test_clip_and_none() -> None:
    g = torch.tensor([[3.0, -0.5]])
    assert normalize_tangent(g, "clip").tolist() == [[1.0, -0.5]]
    assert normalize_tangent(g, "none") is g


def test_diffusion_target_is_the_velocity_of_the_pair() -> None:
    class TargetF(nn.Module):
        num_classes = 0

        def forward(self, x: Tensor, t: Tensor, target: Tensor) -> Tensor:
            return target

    net = TrigFlowPrecond(TargetF(), sigma_data=SIGMA_DATA).double()
    x_0, random = points((2, 3))
    objective = Diffusion(adaptive_weight=False)
    t = objective({"net": net}, Batch(x_0, {"target": x_0}), 0, random).logs["t"]
    z = SIGMA_DATA * random.normal("z", (2, 3), torch.float64)
    target = flow.velocity_target(x_0, z, t) / SIGMA_DATA
    assert objective({"net": net}, Batch(x_0, {"target": target}), 0, random).losses["net"] < 1e-20


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_each_sample_is_independent_of_its_batch(name: str) -> None:
    """t, z, dropout and tangent norms follow the image, not its place: halves of a batch give the whole."""
    net, teacher = small_precond("unet", 3, dropout=0.3), small_precond("unet", 3)
    x_0, random = points((2, 8, 8))
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    fake = small_precond("unet", 3, dropout=0.3, normalization="adagn")
    nets = {"net": net, "fake": fake, "teacher": teacher.eval()}
    objective = OBJECTIVES[name](**({"matched": False} if name == "scd_vsd" else {}))
    assert not objective.couples_images
    whole = objective(nets, Batch(x_0, {"labels": labels}), 7, random).logs
    half = SampleRandom(3, torch.arange(3, 6))
    part = objective(nets, Batch(x_0[3:], {"labels": labels[3:]}, step_images=6), 7, half).logs
    for key, value in whole.items():
        torch.testing.assert_close(value[3:], part[key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
@pytest.mark.parametrize("count", [1, 3, 5])
def test_as_many_numbers_of_images_as_there_are_images(name: str, count: int) -> None:
    """One would be broadcast: the same t and z for all images."""
    net = TrigFlowPrecond(GaussianF(0.3, consistent=True), sigma_data=SIGMA_DATA).double()
    x_0 = points((2, 3), 4)[0]
    nets, random = {"net": net, "teacher": net}, SampleRandom(0, torch.arange(count))
    with pytest.raises(UserError, match=rf"random.index has the shape \({count},\), and the batch has 4"):
        OBJECTIVES[name]()(nets, Batch(x_0), 0, random)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_as_many_conditions_as_there_are_images(name: str) -> None:
    net = small_precond("unet", 3)
    x_0, random = points((2, 8, 8), 4)
    batch = Batch(x_0, {"labels": torch.tensor([1])})
    with pytest.raises(
        UserError, match=r"condition 'labels' has the shape \(1,\), and the batch has 4 images"
    ):
        OBJECTIVES[name]()({"net": net, "teacher": net}, batch, 0, random)


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_seeds_of_dropout_end_with_the_call(name: str) -> None:
    """A later pass in train mode takes any batch size, and draws a new mask each time."""
    net, (x_0, random) = small_precond("mlp", dropout=0.5), points((6,), 4)
    nets = {"net": net, "fake": copy.deepcopy(net), "teacher": small_precond("mlp")}
    OBJECTIVES[name](**({} if name in ("diffusion", "vsd") else {"target_halflife": 100}))(
        nets | {"target": copy.deepcopy(net)}, Batch(x_0), 0, random
    )
    x, t = points((6,), 4)[0], torch.full((4,), 0.5, dtype=torch.float64)
    assert not torch.equal(net(x, t), net(x, t))
    assert net(x[:3], t[:3]).shape == (3, 6)


def test_a_network_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []

    def counted(function: Any, **_: object) -> Any:
        calls.append(function)
        return function

    monkeypatch.setattr(torch, "compile", counted)
    (x_0, random), objective = points((6,)), Diffusion(compile=True)
    for count in (1, 2):
        net = small_precond("mlp")
        plain = Diffusion()({"net": net}, Batch(x_0), 0, random).losses["net"]
        for _ in range(3):
            assert objective({"net": net}, Batch(x_0), 0, random).losses["net"] == plain
        assert len(calls) == count


def test_adaptive_weight_is_optimal_at_the_log_of_the_error() -> None:
    net = small_precond("mlp")
    x_0, random = points((6,))
    output = Diffusion()({"net": net}, Batch(x_0), 0, random)
    error = output.logs["error"]
    torch.testing.assert_close(output.logs["loss"], error)  # u = 0 at the start
    bias = net.adaptive_weight.linear.bias
    gradient = torch.autograd.grad(output.losses["net"], bias)[0]
    torch.testing.assert_close(gradient, (1 - error).mean()[None])


def test_without_prior_weight_the_tangent_is_scaled_by_sigma() -> None:
    net = small_precond("mlp")
    x_0, random = points((6,))
    fields = {"velocity": "data", "warmup": 0, "normalization": "none"}
    with_prior = SCM(**fields)({"net": net}, Batch(x_0), 0, random).logs
    without = SCM(**fields, prior_weight=False)({"net": net}, Batch(x_0), 0, random).logs
    sigma = SIGMA_DATA * with_prior["t"].tan()
    torch.testing.assert_close(without["tangent_norm"], sigma * with_prior["tangent_norm"])


def test_guided_teacher_moves_the_tangent() -> None:
    net, teacher = small_precond("unet", 3), small_precond("unet", 3, normalization="adagn")
    x_0, random = points((2, 8, 8))
    batch = Batch(x_0, {"labels": torch.tensor([0, 1, 2, 0, 1, 2])})
    nets = {"net": net, "teacher": teacher}
    plain = SCM(velocity="teacher", warmup=0)(nets, batch, 0, random).logs["tangent_norm"]
    guided = SCM(velocity="teacher", warmup=0, guidance_scale=2.0)(nets, batch, 0, random).logs[
        "tangent_norm"
    ]
    assert not torch.allclose(plain, guided)


@pytest.mark.parametrize("c_noise", ["t", "edm"])
def test_noise_conditioning(c_noise: str) -> None:
    net = TrigFlowPrecond(nn.Identity(), c_noise=c_noise)
    t = torch.tensor([0.0, 0.5, math.pi / 2])
    value = net.noise_conditioning(t)
    assert torch.isfinite(value).all()
    assert value[1] == pytest.approx(0.5 if c_noise == "t" else math.log(0.5 * math.tan(0.5)) / 4)


@pytest.mark.parametrize("c_noise", ["t", "edm"])
def test_the_noise_conditioning_has_a_derivative(c_noise: str) -> None:
    """Along t alone, by dual numbers and by finite differences."""
    net = small_precond("mlp")
    net.c_noise = c_noise  # type: ignore[assignment]
    x, t = torch.randn(4, 6, dtype=torch.float64), torch.tensor([0.1, 0.5, 1.0, 1.5], dtype=torch.float64)
    along = (torch.zeros_like(x), torch.ones_like(t))
    dual, difference = (
        value_and_tangent(net, (x, t), along, mode=mode).tangent for mode in ("dual", "finite_difference")
    )
    assert torch.allclose(dual, difference, rtol=1e-5, atol=1e-7)
    assert dual.abs().min() > 0


@pytest.mark.parametrize("options", [{"sigma_data": 0.0}, {"sigma_data": -1.0}, {"c_noise": "log"}])
def test_bad_preconditioning_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        TrigFlowPrecond(nn.Identity(), **options)


class TestStableTarget:
    """The velocity averaged over the batch, against the exact one of data that is the batch."""

    @staticmethod
    def draw(count: int = 12, shape: tuple[int, ...] = (2, 3)) -> tuple[Tensor, Tensor, Tensor]:
        x_0, random = points(shape, count)
        return (
            x_0,
            SIGMA_DATA * random.normal("z", shape, torch.float64),
            random.uniform("t", dtype=torch.float64),
        )

    def test_is_the_exact_velocity_of_the_batch(self) -> None:
        x_0, z, u = self.draw()
        t = 0.02 + 1.5 * u
        expected = FiniteData(x_0, SIGMA_DATA).velocity(flow.interpolate(x_0, z, t), t)
        torch.testing.assert_close(stable_velocity(x_0, z, t, SIGMA_DATA, {}), expected, rtol=1e-9, atol=1e-9)

    def test_averages_over_equal_conditions_only(self) -> None:
        x_0, z, u = self.draw()
        t, labels = 0.5 + u, torch.arange(12) % 3
        style = torch.arange(12)[:, None].expand(12, 2) // 6
        found = stable_velocity(x_0, z, t, SIGMA_DATA, {"labels": labels, "style": style})
        for group in torch.unique(labels * 2 + style[:, 0]):
            own = labels * 2 + style[:, 0] == group
            expected = FiniteData(x_0[own], SIGMA_DATA).velocity(
                flow.interpolate(x_0[own], z[own], t[own]), t[own]
            )
            torch.testing.assert_close(found[own], expected, rtol=1e-9, atol=1e-9)

    def test_has_the_pair_velocity_where_no_other_sample_could_be_meant(self) -> None:
        x_0, z, _ = self.draw()
        for t in (0.0, 1e-6, 1e-3):  # also where sin t is 0
            times = torch.full((12,), t, dtype=torch.float64)
            found = stable_velocity(x_0, z, times, SIGMA_DATA, {})
            torch.testing.assert_close(found, flow.velocity_target(x_0, z, times), rtol=1e-12, atol=1e-12)

    def test_has_the_mean_of_the_pairs_velocity_and_less_variance(self) -> None:
        """At one x_t, over pairs from the posterior of a Gaussian that could have led there."""
        oracle = Gaussian(torch.zeros(1), SIGMA_DATA, SIGMA_DATA)
        t = torch.full((64,), 0.9, dtype=torch.float64)
        x_t, pair, stable = [], [], []
        for seed in range(400):
            random = SampleRandom(seed, torch.arange(64))
            x_0 = SIGMA_DATA * random.normal("data", (1,), torch.float64)
            z = SIGMA_DATA * random.normal("z", (1,), torch.float64)
            x_t.append(flow.interpolate(x_0, z, t))
            pair.append(flow.velocity_target(x_0, z, t))
            stable.append(stable_velocity(x_0, z, t, SIGMA_DATA, {}))
        x, exact = torch.cat(x_t), oracle.velocity(torch.cat(x_t), t.repeat(400))
        for velocity, noise in ((torch.cat(pair), 0.5), (torch.cat(stable), 0.15)):
            error = velocity - exact
            slope = (error * x).mean() / x.square().mean()
            assert error.std() < noise and error.mean().abs() < 0.01 and slope.abs() < 0.02
        assert (torch.cat(stable) - exact).std() < 0.3 * (torch.cat(pair) - exact).std()

    def test_is_refused_beside_a_teacher(self) -> None:
        with pytest.raises(ValueError, match="no average over data"):
            SCM(velocity="teacher", stable_target=True)

    def test_takes_noise_out_of_the_tangent(self) -> None:
        net = small_precond("mlp")
        x_0, random = points((6,), 32)
        plain, stable = (
            SCM(velocity="data", stable_target=on)({"net": net}, Batch(x_0), 0, random)
            for on in (False, True)
        )
        assert stable.logs["tangent_norm"].mean() < plain.logs["tangent_norm"].mean()
        assert stable.losses["net"].requires_grad


@pytest.mark.parametrize(
    "make", [lambda: SCM(velocity="data", proposal="uniform"), lambda: Diffusion(compiel=True)]
)
def test_unknown_hyperparameters_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(ValidationError, match="Unexpected keyword argument"):
        make()
