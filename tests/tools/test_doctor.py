"""The doctor finds each planted fault and the module that has it, and passes what is sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import broken_networks
import pytest
import torch
import torch.nn.functional as F
from broken_networks import MORE, PLANTED, SHAPE, Sound
from conftest import TINY
from torch import Tensor, nn

from trigflow import recipes
from trigflow.commands.cli import main
from trigflow.core import schedules
from trigflow.core.precond import TrigFlowPrecond
from trigflow.networks import NETWORKS
from trigflow.networks.foreign import DiffusersAdapter
from trigflow.system.errors import UserError
from trigflow.tools import doctor
from trigflow.training.loop import train


def examined(network: Any, **options: Any) -> doctor.Diagnosis:
    return doctor.diagnose(network, data_shape=options.pop("data_shape", SHAPE), device="cpu", **options)


@pytest.mark.parametrize("fault", PLANTED)
def test_each_planted_fault_is_found_and_its_module_named(fault: str) -> None:
    network, module = PLANTED[fault]
    diagnosis = examined(network)
    assert [(finding.fault, finding.module) for finding in diagnosis.findings][:1] == [(fault, module)]
    assert not diagnosis.healthy
    assert diagnosis.verdict("dual") == diagnosis.verdict("func") == "broken"
    text = doctor.report(diagnosis)
    assert f"module '{module}'" in text and diagnosis.findings[0].remedy in text


@pytest.mark.parametrize("name", MORE)
def test_more_faults(name: str) -> None:
    network, fault, module = MORE[name]
    diagnosis = examined(network)
    assert [(finding.fault, finding.module) for finding in diagnosis.findings][:1] == [(fault, module)]
    assert not diagnosis.healthy


def test_finite_differences_serve_where_there_is_no_derivative() -> None:
    assert examined(PLANTED["no_derivative"][0]).verdict("finite_difference") == "fallback"


OPTIONS: dict[str, dict[str, Any]] = {
    "mlp": {"data_shape": (2,)},
    "unet": {
        "data_shape": (1, 8, 8),
        "channels": 8,
        "num_blocks": 1,
        "attention_levels": (1,),
        "dropout": 0.1,
    },
    "ddpmpp": {
        "data_shape": (1, 8, 8),
        "channels": 8,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "dropout": 0.1,
    },
    "dit": {"data_shape": (1, 8, 8), "width": 16, "depth": 2, "heads": 2, "dropout": 0.1},
    "edm2": {
        "data_shape": (1, 8, 8),
        "channels": 8,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attention_levels": (1,),
        "dropout": 0.1,
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_are_healthy(name: str) -> None:
    options = dict(OPTIONS[name])
    network = TrigFlowPrecond(NETWORKS[name](num_classes=3, **options))
    diagnosis = examined(network, data_shape=options["data_shape"])
    assert diagnosis.healthy and not diagnosis.fallbacks
    verdicts = {mode.mode: mode.verdict for mode in diagnosis.modes}
    assert verdicts == {"dual": "exact", "func": "exact", "finite_difference": "fallback"}
    errors = {mode.mode: mode.error for mode in diagnosis.modes}
    assert errors["dual"] < 1e-9 and errors["func"] < 1e-9 and errors["finite_difference"] < 1e-6
    assert all(mode.cost and mode.cost > 0 for mode in diagnosis.modes)


def test_a_diffusers_unet_with_its_attention_is_healthy() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    diagnosis = examined(DiffusersAdapter(model), data_shape=(1, 8, 8))
    assert not diagnosis.findings
    assert diagnosis.verdict("dual") == "exact"


class SinglePrecisionTime(nn.Module):
    """The usual embedding, whose frequencies and times are in float32 whatever the network is."""

    def forward(self, t: Tensor) -> Tensor:
        phases = t[:, None].float() * torch.ones(1, dtype=torch.float32)
        return torch.cat([phases.cos(), phases.sin()], dim=1)


def test_a_network_for_float32_alone_is_examined_in_float32() -> None:
    diagnosis = examined(Sound(time=SinglePrecisionTime()))
    assert diagnosis.healthy and diagnosis.verdict("dual") == "exact"
    assert "float32" in doctor.report(diagnosis)


def test_a_network_for_float64_alone_is_told() -> None:
    diagnosis = examined(broken_networks.Sound(middle=DoubleOnly()))
    assert [finding.fault for finding in diagnosis.findings] == ["error"]
    assert "float32" in diagnosis.findings[0].detail
    assert all(mode.cost is None for mode in diagnosis.modes)


class DoubleOnly(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x).double()


def test_a_conditional_diffusers_unet_with_large_times_is_healthy() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8,),
        norm_num_groups=4,
        num_class_embeds=3,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
    )
    network = DiffusersAdapter(model, time_scale=1000.0)
    assert network.num_classes == 3
    diagnosis = examined(network, data_shape=(1, 8, 8))
    assert not diagnosis.findings and diagnosis.verdict("dual") == "exact"


def test_an_exact_mode_is_recommended_unless_differences_are_clearly_cheaper() -> None:
    def told(cost: float) -> str:
        modes = (
            doctor.ModeReport("dual", "exact", 0.0, 2.0),
            doctor.ModeReport("finite_difference", "fallback", 0.0, cost),
        )
        return doctor.report(doctor.Diagnosis("net", modes, ()))

    assert "recommended mode: dual" in told(1.9) and "recommended mode: finite_difference" in told(1.5)


class WithoutRule(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lgamma(F.softplus(x) + 1)


def test_functions_without_a_rule_are_named() -> None:
    diagnosis = examined(Sound(middle=WithoutRule()))
    assert diagnosis.healthy
    assert diagnosis.verdict("dual") == "fallback" and diagnosis.fallbacks == ("torch.lgamma",)
    assert "torch.lgamma" in doctor.report(diagnosis)


def test_the_network_and_the_generator_are_left_as_they_were() -> None:
    network = Sound().eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    examined(network)
    assert torch.equal(torch.rand(2), expected)
    assert not network.training and not network._forward_hooks
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_class_is_found_by_its_name() -> None:
    assert doctor.diagnose(f"{broken_networks.__name__}:Sound", data_shape=SHAPE, device="cpu").healthy


def test_own_inputs() -> None:
    inputs = (torch.randn(3, *SHAPE), torch.rand(3))
    assert doctor.diagnose(Sound(), inputs=inputs, device="cpu").healthy
    with pytest.raises(UserError, match="inputs must be"):
        doctor.diagnose(Sound(), inputs=(inputs[0], inputs[1][:2]), device="cpu")


def test_what_is_no_network_is_told() -> None:
    with pytest.raises(UserError, match=r"examines an nn\.Module"):
        doctor.diagnose("fractions:Fraction", device="cpu")


# What users write around their networks.


class ForeignTime(nn.Module):
    """A network of another schedule, whose time is that of its training: `conversion` stands in its forward."""

    def __init__(self, schedule: schedules.Schedule, norm: bool = True) -> None:
        super().__init__()
        self.conversion = schedules.Conversion(schedule, sigma_data=1.0)
        self.norm = nn.GroupNorm(1, SHAPE[0]) if norm else nn.Identity()
        self.network = Sound()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        s = self.conversion.time(t)
        foreign = self.conversion.foreign_point(self.norm(x), s)
        return self.conversion.velocity(self.network(foreign, s), x, s, "flow")


def test_a_conversion_within_a_network_is_healthy() -> None:
    diagnosis = examined(ForeignTime(schedules.FlowMatching()))
    assert diagnosis.healthy and not diagnosis.findings
    assert diagnosis.verdict("dual") == diagnosis.verdict("func") == "exact"


class AsksForTensors(nn.Module):
    """Takes what is no Tensor for a number, as code does that knows nothing of Duals."""

    def forward(self, t: Tensor) -> Tensor:
        t = t if isinstance(t, Tensor) else torch.tensor(t)
        return torch.stack([t.cos(), t.sin()], dim=1)


def test_no_module_is_blamed_where_only_the_dual_mode_fails() -> None:
    diagnosis = examined(Sound(time=AsksForTensors(), middle=nn.GroupNorm(1, 8)))
    assert not diagnosis.findings and diagnosis.healthy
    assert diagnosis.verdict("dual") == "broken" and diagnosis.verdict("func") == "exact"
    text = doctor.report(diagnosis)
    assert "(in 'time')" in text and "objective.derivative=f" in text


class Steep(nn.Module):
    """Takes log(sigma) of t, whose derivative is 1 / (sin t cos t)."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.network, self.factor = Sound(), factor

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.network(x, self.factor * torch.log(torch.tan(t)))


def test_a_derivative_that_explodes_is_warned_of() -> None:
    diagnosis = examined(Steep())
    assert diagnosis.healthy and [slope.t for slope in diagnosis.exploding][-1] == pytest.approx(
        1.5645, abs=1e-3
    )
    text = doctor.report(diagnosis)
    assert "WARNING: |dF/dt| is" in text and "the derivative is right, but explodes" in text
    command = (
        "trigflow train TEACHER_RECIPE init=TEACHER network=package.module:NetworkOfT --out runs/teacher-of-t"
    )
    assert command in text
    assert not examined(Sound()).exploding and not examined(nn.Sequential()).exploding


def test_a_teacher_is_trained_on_with_another_time_input(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    recipe = recipes.get("digits-teacher", [*TINY, "network.normalization=double", "precond.c_noise=edm"])
    train(recipe, teacher, device="cpu", progress=False)
    before = doctor.diagnose(str(teacher), device="cpu")
    assert before.exploding
    command = f"train {teacher / 'recipe.json'} init={teacher} precond.c_noise=t --out runs/teacher-of-t"
    assert f"trigflow {command}" in doctor.report(before)
    words = command.replace("runs/teacher-of-t", str(tmp_path / "of-t")).split()
    assert main([*words, "--device", "cpu"]) == 0
    assert not doctor.diagnose(str(tmp_path / "of-t"), device="cpu").exploding
