"""Every public function of the mathematics can be a part of a network: all modes know its derivative.

Each entry of the table is a function of x (3, 2) and t (3,) in float64 that calls one public function; a new one that
is neither in it nor among those without a derivative fails the test.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trigflow import core
from trigflow.core import flow, guidance, oracles, precond, samplers, schedules, time_distributions
from trigflow.dual import MODES, value_and_tangent

T = torch.tensor([0.31, 0.83, 1.27], dtype=torch.float64)
X = torch.tensor([[0.3, -0.7], [1.1, 0.2], [-0.4, 0.6]], dtype=torch.float64)
DX, DT = torch.cos(5 * X), 0.5 + torch.sin(3 * T)

Function = Callable[[Any, Any], Any]

# Of numbers alone, of random numbers, of a finished pass, or that return no tensor.
WITHOUT_DERIVATIVE = {
    "flow_map.FlowMapError.measure",
    "guidance.highest_scale",
    "guidance.scale_in_words",
    "guidance.scale_or_range",
    "oracles.FiniteData.sample",
    "oracles.Gaussian.sample",
    "oracles.GaussianMixture.sample",
    "oracles.mixture2d",
    "precond.TrigFlowPrecond.normalize_weights",
    "randomness.SampleRandom.keys",
    "randomness.SampleRandom.normal",
    "randomness.SampleRandom.uniform",
    "randomness.hash_uniform",
    "samplers.count_nfe",
    "samplers.find_sampler",
    "time_grids.consistency_times",
    "time_grids.edm_times",
    "time_grids.flow_map_times",
}


def curved(x: Any, t: Any, **cond: Any) -> Any:
    """A velocity that depends on x and t."""
    return torch.sin(2 * x) + flow.expand(torch.cos(t), x) * x


def mapped(x: Any, t: Any, s: Any, **cond: Any) -> Any:
    return curved(x, t) + flow.expand(s, x)


class Curved(nn.Module):
    def forward(self, x: Any, t: Any) -> Any:
        return curved(x, t)


LABELS = torch.tensor([0, 1, 0])
SCHEDULES: dict[str, schedules.Schedule] = {
    **{name: schedules.SCHEDULES[name]() for name in ("edm", "vp_cosine", "vp_linear", "flow_matching")},
    "vp_cosine_0": schedules.VPCosine(offset=0.0),
    "ddpm": schedules.DDPM(torch.linspace(0.999, 0.01, 50, dtype=torch.float64)),
    "any": schedules.AnySchedule(lambda s: torch.exp(-s), lambda s: s * torch.exp(s / 3), 0.0, 9.0),
}
ORACLES: dict[str, Any] = {
    "Gaussian": oracles.Gaussian(torch.tensor([0.2, -0.3]), torch.tensor([0.3, 0.6])),
    "GaussianMixture": oracles.mixture2d(),
    "FiniteData": oracles.FiniteData(X.flip(0) + 0.3, 0.5),
}


def _of_schedules() -> Iterator[tuple[str, Function]]:
    for name, schedule in SCHEDULES.items():
        kind, s = type(schedule).__name__, (19.3 if name == "ddpm" else 0.6)
        both = schedules.Conversion(schedule, sigma_data=0.7, data_scale=1.3)
        for method in ("alpha", "sigma"):
            part = getattr(schedule, method)
            yield f"schedules.{kind}.{method}: {name}", lambda x, t, part=part, s=s: part(s * t)
        yield f"schedules.{kind}.time_from_ratio: {name}", lambda x, t, c=schedule: c.time_from_ratio(t + 0.1)
        yield f"schedules.Conversion.t: {name}", lambda x, t, c=both, s=s: c.t(s * t)
        yield f"schedules.Conversion.time: {name}", lambda x, t, c=both: c.time(t)
        for method in ("point", "foreign_point"):
            scale = getattr(both, method)
            yield f"schedules.Conversion.{method}: {name}", lambda x, t, f=scale, s=s: f(x, s * t)
        for prediction in schedules.PREDICTIONS:
            for method in ("velocity", "prediction"):
                turn = partial(getattr(both, method), kind=prediction)
                yield (
                    f"schedules.Conversion.{method}: {name}, {prediction}",
                    lambda x, t, f=turn, s=s: f(curved(x, t), x, s * t),
                )


def _of_oracles() -> Iterator[tuple[str, Function]]:
    for name, oracle in ORACLES.items():
        yield f"oracles.{name}.velocity", oracle.velocity
        yield f"oracles.{name}.denoised", oracle.denoised
        yield f"oracles.{name}.flow_map", partial(oracle.flow_map, steps=4)
    yield "oracles.solve_flow", lambda x, t: oracles.solve_flow(curved, x, t, t_end=0.1, steps=3)


def _of_samplers() -> Iterator[tuple[str, Function]]:
    noise: Any = lambda step: DX  # noqa: E731
    for name in samplers.SAMPLERS:
        velocity = mapped if name == "flow_map" else curved
        yield (
            f"samplers.sample: {name}",
            lambda x, t, v=velocity, n=name: samplers.sample(n, v, x, 3, noise=noise, sigma_data=0.5),
        )
        function = getattr(samplers, f"sample_{name}")
        given: dict[str, Any] = {"noise": noise, "sigma_data": 0.5}
        given = {key: given[key] for key in given if key in inspect.signature(function).parameters}
        times = [1.5, 0.7] if name == "consistency" else [1.5, 0.7, 0.0]
        yield (
            f"samplers.sample_{name}",
            lambda x, t, f=function, v=velocity, g=given, times=times: f(v, x, times, **g),
        )
    counted = samplers.CountNFE(curved)
    yield "samplers.CountNFE.with_guide", lambda x, t: counted(x, t) + counted.with_guide(curved)(x, t)


def _of_preconditioning() -> Iterator[tuple[str, Function]]:
    weight = precond.AdaptiveWeight(8).double()
    nn.init.normal_(weight.linear.weight)
    yield "precond.AdaptiveWeight.forward", lambda x, t: weight(t)
    for c_noise in ("t", "edm"):
        model: Any = precond.TrigFlowPrecond(Curved(), c_noise=c_noise).double()  # type: ignore[arg-type]
        nn.init.normal_(model.adaptive_weight.linear.weight, std=0.1)
        for method in ("noise_conditioning", "logvar"):
            of_t = getattr(model, method)
            yield f"precond.TrigFlowPrecond.{method}: {c_noise}", lambda x, t, f=of_t: f(t)
        for method in ("forward", "velocity", "denoised"):
            yield f"precond.TrigFlowPrecond.{method}: {c_noise}", getattr(model, method)


def _of_guidance() -> Iterator[tuple[str, Function]]:
    def labelled(x: Any, t: Any, labels: Tensor) -> Any:
        return curved(x, t) * (1 + labels[:, None])

    yield "guidance.guided", lambda x, t: guidance.guided(labelled, 1.7, 2)(x, t, labels=LABELS)
    yield "guidance.guided: of each", lambda x, t: guidance.guided(labelled, t + 1, 2)(x, t, labels=LABELS)
    yield "guidance.autoguided", lambda x, t: guidance.autoguided(curved, lambda x, t: x * x, 1.7)(x, t)
    yield "guidance.autoguided: of each", lambda x, t: guidance.autoguided(curved, lambda x, t: x, t)(x, t)
    yield "guidance.scales_in", lambda x, t: guidance.scales_in(1.0, 2.0, t)


def _of_flow() -> Iterator[tuple[str, Function]]:
    yield "flow.expand", lambda x, t: flow.expand(t, x) * flow.expand(2.0, x)
    yield "flow.interpolate", lambda x, t: flow.interpolate(x, curved(x, t), t)
    yield "flow.velocity_target", lambda x, t: flow.velocity_target(x, curved(x, t), t)
    yield "flow.ddim_step", lambda x, t: flow.ddim_step(x, curved(x, t), t, t * t / 3)
    yield "flow.ddim_step: to a number", lambda x, t: flow.ddim_step(x, curved(x, t), t, 0.2)
    for name in ("denoised", "noise", "velocity_from_denoised"):
        function = getattr(flow, name)
        yield f"flow.{name}", lambda x, t, f=function: f(x, curved(x, t), t)
    yield "flow.sigma_from_t", lambda x, t: flow.sigma_from_t(t, 0.7)
    yield "flow.t_from_sigma", lambda x, t: flow.t_from_sigma(t, 0.7)
    for name, times in time_distributions.TIME_DISTRIBUTIONS.items():
        yield f"time_distributions.{name}", lambda x, t, f=times: f(t / 2, -0.8, 1.6, 0.5)


ENTRIES = (_of_flow, _of_preconditioning, _of_guidance, _of_schedules, _of_oracles, _of_samplers)
TABLE: dict[str, Function] = {name: function for entries in ENTRIES for name, function in entries()}


def public() -> Iterator[str]:
    """Public functions of core, and public methods of its classes, as module.function and module.Class.method."""
    for module in pkgutil.iter_modules(core.__path__):
        found = importlib.import_module(f"trigflow.core.{module.name}")
        for name, item in vars(found).items():
            if name.startswith("_") or getattr(item, "__module__", "") != found.__name__:
                continue
            if inspect.isfunction(item):
                yield f"{module.name}.{name}"
            if inspect.isclass(item) and not getattr(item, "_is_protocol", False):
                fields = getattr(item, "__dataclass_fields__", {})
                methods = (key for key in vars(item).keys() - fields.keys() if callable(getattr(item, key)))
                yield from (f"{module.name}.{name}.{key}" for key in methods if not key.startswith("_"))


def test_no_public_function_is_missing() -> None:
    known = {name.partition(":")[0] for name in TABLE} | WITHOUT_DERIVATIVE
    assert set(public()) - known == set()
    assert set(public()) >= WITHOUT_DERIVATIVE


@pytest.mark.parametrize("name", TABLE)
def test_all_modes_agree_with_central_differences(name: str) -> None:
    function = TABLE[name]
    step = 1e-5
    with torch.no_grad():
        ahead, behind = function(X + step * DX, T + step * DT), function(X - step * DX, T - step * DT)
        expected, value = (ahead - behind) / (2 * step), function(X, T)
    for mode in MODES:
        found = value_and_tangent(function, (X, T), (DX, DT), mode=mode)
        torch.testing.assert_close(found.value, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(found.tangent, expected, rtol=1e-6, atol=1e-7)
