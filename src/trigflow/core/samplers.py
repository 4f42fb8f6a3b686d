"""Samplers: functions of a velocity and a descending list of times, from noise to data.

The PF-ODE is TrigFlow's, so that an ODE sampler needs neither sigma_data nor a noise schedule: a method stated in EDM's
variables (sigma, x_sigma) = (sigma_data tan t, x_t / cos t) makes the same steps. Labels and guidance are part of the
velocity; noise is passed in. Gradients are recorded unless you sample under torch.no_grad().
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from trigflow.core import flow
from trigflow.core.guidance import guided
from trigflow.core.time_grids import consistency_times, edm_times, flow_map_times
from trigflow.system.config import given_what_it_names, look_up
from trigflow.system.errors import UserError, one_of
from trigflow.system.tensors import is_tensor

Velocity = Callable[[Tensor, Tensor], Tensor]  # x_t (B, ...), t (B,) -> dx_t/dt, of the shape of x_t


class OnStep(Protocol):
    """Called at each time of the grid with x_t and the network's prediction of x_0."""

    def __call__(self, t: float, x_t: Tensor, x_0: Tensor) -> None: ...


@dataclass(frozen=True)
class Trajectory:
    """A sampler's path through time.

    Attributes:
        ts: (S + 1,) float64, descending; the last is 0.
        states: x_t at these times, (S + 1, n, ...); states[-1] is the sample x_0.
        labels: (n,) int64, or None.
        nfe: network evaluations per sample.
    """

    ts: Tensor
    states: Tensor
    labels: Tensor | None
    nfe: int


@dataclass(frozen=True)
class SamplingPlan:
    """The sampling settings of a batch, with all defaults filled in."""

    sampler: str
    steps: int
    guidance_scale: float
    t_mid: float


class CountNFE:
    """A velocity that counts the network evaluations (NFE).

    Wrap the innermost call, so that a guided step, which calls it with labels and without, counts two.

    Args:
        velocity: velocity(x_t, t, **cond).
    """

    def __init__(self, velocity: Callable[..., Tensor]) -> None:
        self.velocity = velocity
        self.nfe = 0

    def __call__(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        self.nfe += 1
        return self.velocity(x_t, t, **cond)

    def with_guide(self, guide: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """The velocity of another network, the guide, whose evaluations are counted as well."""

        def counted(x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            self.nfe += 1
            return guide(x_t, t, **cond)

        return counted


# Samplers


def sample_consistency(
    velocity: Velocity,
    x_T: Tensor,
    ts: Sequence[float],
    noise: Callable[[int], Tensor],
    sigma_data: float,
    on_step: OnStep | None = None,
) -> Tensor:
    """Multistep consistency sampling: predict x_0, add noise, predict again (Song et al., 2023, algorithm 1).

    NFE: the number of times.

    Args:
        velocity: the consistency model's sigma_data F.
        x_T: (B, ...) noise of std sigma_data, used as x_t at t = ts[0].
        ts: descending times in (0, pi/2], e.g. `consistency_times(2)`.
        noise: noise(step) -> standard normal numbers of the shape of x_T, for step = 1, 2, ..., len(ts) - 1.
        sigma_data: std of the data.
        on_step: called at each time.

    Returns:
        x_0 (B, ...).

    Raises:
        UserError: ts is empty, not descending, or outside (0, pi/2]; noise of another shape.
    """
    _check_times(ts, least=1, lowest_allowed=False)
    x_0 = _predict(velocity, x_T, ts[0], on_step)
    for step, t in enumerate(ts[1:], start=1):
        z = noise(step)
        _check_noise(z, step, x_T)
        x_t = flow.interpolate(x_0, sigma_data * z.to(x_0), t)
        x_0 = _predict(velocity, x_t, t, on_step)
    return x_0


def sample_ddim(
    velocity: Velocity, x_T: Tensor, ts: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """DDIM (Song et al., 2021), Euler's method in EDM's variables. First order, one evaluation per step.

    Args:
        velocity: dx_t/dt of the PF-ODE.
        x_T: (B, ...), x_t at t = ts[0], of std sigma_data where that is close to pi/2.
        ts: descending times in [0, pi/2], e.g. `edm_times(32)`; the last is where to stop.
        on_step: called at each time but the last.

    Returns:
        x (B, ...) at ts[-1].

    Raises:
        UserError: fewer than two times, not descending, or outside [0, pi/2].
    """
    _check_times(ts)
    x = x_T
    for t, s in pairwise(ts):
        v = _evaluate(velocity, x, t, on_step)
        x = flow.ddim_step(x, v, t, s)
    return x


def sample_heun(
    velocity: Velocity, x_T: Tensor, ts: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """EDM's deterministic sampler (Karras et al., 2022, algorithm 1). Second order, two evaluations per step.

    In EDM's variables the PF-ODE is d(x_t / cos t)/d(tan t) = noise(x_t, t), finite at both ends of
    a step, and Heun's trapezoidal rule does not need sigma_data. A step to t = 0 is an Euler step, so that
    `edm_times(n)` takes 2n - 1 evaluations.

    Args, Returns, Raises: as `sample_ddim`; ts[0] must be less than pi/2, where tan t is infinite.
    """
    _check_times(ts, highest=math.nextafter(flow.T_MAX, 0))
    x = x_T
    for t, s in pairwise(ts):
        z = flow.noise(x, _evaluate(velocity, x, t, on_step), t)
        x_s = _edm_euler(x, z, t, s)
        if s > 0:
            z_s = flow.noise(x_s, velocity(x_s, _times(s, x_s)), s)
            x_s = _edm_euler(x, (z + z_s) / 2, t, s)
        x = x_s
    return x


def sample_dpmpp_2m(
    velocity: Velocity, x_T: Tensor, ts: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2). Second order, one evaluation per step.

        x_s = (sin(s) x_t + sin(t - s) D) / sin(t)

    with D extrapolated from the last two predictions of x_0 to the middle of the step in log tan t. The first step
    has only one prediction, and a step to t = 0 has no middle: both are first order.

    Args, Returns, Raises: as `sample_ddim`.
    """
    _check_times(ts)
    x, before, last_step = x_T, None, math.inf
    for t, s in pairwise(ts):
        D = flow.denoised(x, _evaluate(velocity, x, t, on_step), t)
        step = math.log(math.tan(t) / math.tan(s)) if s > 0 else math.inf
        D_mid = D if before is None or s == 0 else D + step / (2 * last_step) * (D - before)
        x = math.sin(s) / math.sin(t) * x + math.sin(t - s) / math.sin(t) * D_mid
        before, last_step = D, step
    return x


def sample_flow_map(
    velocity: Callable[..., Tensor], x_T: Tensor, ts: Sequence[float], on_step: OnStep | None = None
) -> Tensor:
    """The steps of a flow map, a network with a second time: one evaluation takes x_t to x_s, without noise.

        x_s = cos(t - s) x_t - sin(t - s) sigma_data F(x_t, t, s)

    which is the consistency model's prediction for s = 0, and DDIM's step for s -> t (Align Your Flow, arXiv
    2506.14603).

    Args:
        velocity: velocity(x_t, t, s=...) -> sigma_data F, with both times (B,).
        x_T: the noise, (B, ...).
        ts: descending times in [0, pi/2]; the last is where to stop.
        on_step: called with each t, x_t and x_s.

    Returns:
        x at the last time.

    Raises:
        UserError: the times do not descend or are out of range.
    """
    _check_times(ts)
    x = x_T
    for t, s in pairwise(ts):
        v = velocity(x, _times(t, x), s=_times(s, x))
        x_s = math.cos(t - s) * x - math.sin(t - s) * v
        if on_step is not None:
            on_step(t, x, x_s)
        x = x_s
    return x


# The table


@dataclass(frozen=True)
class Sampler:
    """A sampler: its function, its time grid, and the models it is for.

    One of your own is an object of this class in your module: "package.module:object".

    Args:
        function: function(velocity, x_T, ts) -> x_0; of `noise`, `sigma_data` and `on_step`, as they are used in this
            file, it gets those that it names.
        times: times(steps, sigma_data) -> descending times for this number of steps; it gets `t_mid` if it names it.
        kind: "teacher" solves the PF-ODE of a diffusion model; "student" uses predictions of a consistency model.
        second_time: it calls velocity(x_t, t, s=...), which takes a network with a second time.
    """

    function: Callable[..., Tensor]
    times: Callable[..., Sequence[float]] = edm_times
    kind: Literal["teacher", "student"] = "teacher"
    second_time: bool = False

    def __post_init__(self) -> None:
        one_of("kind of sampler", self.kind, ("teacher", "student"))
        for name, part in (("function", self.function), ("times", self.times)):
            if not callable(part):
                raise UserError(f"{name} of a Sampler is {part!r}: give a function")

    def __call__(
        self,
        velocity: Velocity,
        x_T: Tensor,
        steps: int,
        *,
        noise: Callable[[int], Tensor],
        sigma_data: float,
        t_mid: float = flow.T_MID,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Samples x_0 on the sampler's own time grid; arguments as of `sample`."""
        ts = given_what_it_names(self.times, steps, sigma_data, t_mid=t_mid)
        options = {"noise": noise, "sigma_data": sigma_data, "on_step": on_step}
        if on_step is not None and "on_step" not in inspect.signature(self.function).parameters:
            raise UserError(
                "this sampler has no parameter on_step, which a path needs: add it, or sample without"
            )
        x_0: Any = given_what_it_names(self.function, velocity, x_T, ts, **options)
        if not is_tensor(x_0) or x_0.shape != x_T.shape:
            what = f"the shape {tuple(x_0.shape)}" if is_tensor(x_0) else f"a {type(x_0).__name__}"
            name = getattr(self.function, "__name__", "the sampler")
            raise UserError(f"{name} returned {what}: return samples of the shape of x_T, {tuple(x_T.shape)}")
        return x_0


SAMPLERS: dict[str, Sampler] = {
    "consistency": Sampler(sample_consistency, consistency_times, "student"),
    "flow_map": Sampler(sample_flow_map, flow_map_times, "student", second_time=True),
    "ddim": Sampler(sample_ddim),
    "heun": Sampler(sample_heun),
    "dpmpp_2m": Sampler(sample_dpmpp_2m),
}


def find_sampler(name: str, what: str = "sampler") -> Sampler:
    """The sampler of a name in SAMPLERS, or of "package.module:object", which is imported.

    Raises:
        UserError: there is none, or the object is no Sampler.
    """
    if not isinstance(name, str):
        raise UserError(f"{what} is a {type(name).__name__}: give its name, 'package.module:object'")
    found: Any = look_up(name, SAMPLERS, what)
    if not isinstance(found, Sampler):
        raise UserError(
            f"{what} '{name}' is no trigflow.samplers.Sampler: give one, Sampler(function, times, kind)"
        )
    return found


def sample(
    sampler: str,
    velocity: Velocity,
    x_T: Tensor,
    steps: int,
    *,
    noise: Callable[[int], Tensor],
    sigma_data: float,
    t_mid: float = flow.T_MID,
    on_step: OnStep | None = None,
) -> Tensor:
    """Samples x_0 by a named sampler on its own time grid.

    Args:
        sampler: a name in SAMPLERS, or "package.module:object".
        velocity, x_T, on_step: as in the samplers.
        steps: number of steps, >= 1. NFE: steps, or 2 steps - 1 for "heun".
        noise: noise(step) -> standard normal numbers of the shape of x_T, for a sampler that adds noise.
        sigma_data: std of the data.
        t_mid: where the last step of "consistency" and "flow_map" starts.

    Raises:
        UserError: no such sampler, steps < 1, t_mid outside (0, t_max), or noise of another shape.
    """
    return find_sampler(sampler)(
        velocity, x_T, steps, noise=noise, sigma_data=sigma_data, t_mid=t_mid, on_step=on_step
    )


def count_nfe(plan: SamplingPlan, data_shape: tuple[int, ...] = (1,)) -> int:
    """Network evaluations (NFE) per sample, counted by running the sampler with a velocity of zero, without a network.

    While samples are drawn, `CountNFE` counts them.

    Raises:
        UserError: as `sample`, `guided`.
    """
    counter = CountNFE(lambda x_t, t, **_: torch.zeros_like(x_t))
    labels, still = torch.zeros(1, dtype=torch.int64), torch.zeros(1, *data_shape)
    velocity = partial(guided(counter, plan.guidance_scale, null_label=1), labels=labels)
    sample(plan.sampler, velocity, still, plan.steps, noise=lambda step: still, sigma_data=0.5)
    return counter.nfe


# Parts


def _times(t: float, x: Tensor) -> Tensor:
    """t as the network takes it: (B,), at least float32."""
    return torch.full((len(x),), t, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)


def _evaluate(velocity: Velocity, x_t: Tensor, t: float, on_step: OnStep | None) -> Tensor:
    v = velocity(x_t, _times(t, x_t))
    if on_step is not None:
        on_step(t, x_t, flow.denoised(x_t, v, t))
    return v


def _predict(velocity: Velocity, x_t: Tensor, t: float, on_step: OnStep | None) -> Tensor:
    return flow.denoised(x_t, _evaluate(velocity, x_t, t, on_step), t)


def _edm_euler(x_t: Tensor, z: Tensor, t: float, s: float) -> Tensor:
    """x_s / cos s = x_t / cos t + (tan s - tan t) z, multiplied by cos s."""
    return math.cos(s) / math.cos(t) * x_t - math.sin(t - s) / math.cos(t) * z


def _check_noise(z: Tensor, step: int, x_T: Tensor) -> None:
    """Noise that is broadcast would be the same for several samples or pixels, and nobody would see it."""
    if not is_tensor(z) or z.shape != x_T.shape:
        what = f"has the shape {tuple(z.shape)}" if is_tensor(z) else f"is a {type(z).__name__}"
        raise UserError(
            f"noise({step}) {what}: give a number for each of x_T, {tuple(x_T.shape)}, as by "
            "lambda step: torch.randn(x_T.shape)"
        )


def _check_times(
    ts: Sequence[float], least: int = 2, lowest_allowed: bool = True, highest: float = flow.T_MAX
) -> None:
    if len(ts) < least:
        raise UserError(f"the time grid has {len(ts)} times: give {least} or more")
    if not all(s < t for t, s in pairwise(ts)):
        raise UserError("the time grid must descend from noise to data")
    if ts[0] > highest or ts[-1] < 0 or (ts[-1] == 0 and not lowest_allowed):
        allowed = f"{'[' if lowest_allowed else '('}0, {highest:.4f}]"
        raise UserError(f"the time grid runs from {ts[0]} to {ts[-1]}: it must lie in {allowed}")
