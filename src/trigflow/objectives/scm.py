"""Continuous-time consistency training (sCT) and distillation (sCD): Algorithm 1 of arXiv 2410.11081."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass
from torch import Tensor

from trigflow import dual
from trigflow.core import flow
from trigflow.core.guidance import GuidanceScale, scale_in_words
from trigflow.core.randomness import SampleRandom
from trigflow.networks.dropout import seeded_dropout
from trigflow.objectives.batch import Batch, LossOutput, Nets, Objective, check_batch
from trigflow.objectives.diffusion import TimeDistribution, per_sample, sample_times, weighted
from trigflow.objectives.stable_target import stable_velocity
from trigflow.objectives.teacher import drawn_scale, guided_teacher, student_conditions
from trigflow.objectives.warmup import Warmup, warmup_at
from trigflow.system.config import STRICT_KEYS
from trigflow.system.devices import without_autocast

Normalization = Literal["rms", "l2", "clip", "none"]


def consistency_tangent(
    x_t: Tensor,
    t: Tensor,
    F: Tensor,
    scaled_dF_dt: Tensor,
    dx_dt: Tensor,
    sigma_data: float,
    warmup: float = 1.0,
) -> Tensor:
    """g = cos t df/dt of the consistency function f along the path, with its second term scaled by r (section 4.2).

    g = -cos^2 t (sigma_data F - dx/dt) - r (cos t sin t x_t + sigma_data [cos t sin t dF/dt])

    Args:
        x_t: noisy sample, (B, ...).
        t: times, (B,).
        F: output of the network at (x_t, t), (B, ...).
        scaled_dF_dt: cos t sin t dF/dt, its total derivative along the path, as the paper rearranges it, (B, ...).
        dx_dt: dx_t/dt, the velocity of the teacher or of the pair (x_0, z), (B, ...).
        sigma_data: standard deviation of the data.
        warmup: the paper's r in [0, 1].

    Returns:
        g, (B, ...); at r = 1 it is cos t df/dt exactly.
    """
    cos, sin = flow.expand(t.cos(), x_t), flow.expand(t.sin(), x_t)
    return -(cos**2) * (sigma_data * F - dx_dt) - warmup * (cos * sin * x_t + sigma_data * scaled_dF_dt)


def normalize_tangent(g: Tensor, normalization: Normalization, c: float = 0.1) -> Tensor:
    """g / (|g| + c) for each sample, where |.| is the root mean square ("rms") or the L2 norm ("l2").

    "clip" limits each element to [-1, 1] instead, "none" changes nothing (section 4.2, ablated in figure 5a).
    """
    if normalization == "clip":
        return g.clamp(-1, 1)
    if normalization == "none":
        return g
    square = g.flatten(1).square()
    norm = (square.mean(1) if normalization == "rms" else square.sum(1)).sqrt()
    return g / flow.expand(norm + c, g)


@cache
def _compiled_derivative() -> Any:
    return torch.compile(dual.value_and_tangent, dynamic=False)


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class SCM(Objective):
    """L = E exp(-u(t)) / D |F - sg(F) - g/(|g| + c)|^2 + u(t), with g = cos t df/dt from one pass through the network.

    Args:
        velocity: the source of dx_t/dt: "teacher" is sCD, "data" (cos(t) z - sin(t) x_0) is sCT.
        P_mean, P_std: log(sigma_data tan t) ~ N(P_mean, P_std^2).
        time_distribution: a name in TIME_DISTRIBUTIONS (`trigflow list time_distributions`).
        normalization: normalisation of the tangent: "rms", "l2", "clip" or "none" (`normalize_tangent`).
        c: added to the norm of the tangent.
        warmup: length H of the tangent warm-up r = min(1, progress/H); 0 switches it off. Or knots
            [[length, r], ...], between which r is linear; after the last knot r is constant. If r stays below
            1 the student averages the teacher's denoiser over the rest of the path: slightly blurred, but errors at
            small times decay instead of accumulating (docs/objectives.md).
        warmup_unit: the unit of the lengths, "images" or "steps".
        adaptive_weight: learn u(t); if false, u = 0.
        prior_weight: keep the weight 1/sigma that is folded into g; if false, the weight is one, g sigma_data tan t.
        target_halflife: half-life, in images, of a target network, an EMA of the trained network (at most a twentieth
            of the images seen): F^- and the tangent are then computed with the target network, and less noisy. 0: with
            the trained network itself, as in the paper.
        stable_target: sCT averages dx_t/dt over the batch (stable_velocity), which makes the tangent less noisy.
        guidance_scale: guidance scale of the teacher; 1 is no guidance, the only value for "data". The weak velocity is
            that of the teacher's null label, or of the network "guide" if there is one. With a range [low, high] the
            scale is drawn uniformly for each image and passed to the student as the condition "guidance" (sCM,
            appendix G: s ~ U[1, 2]).
        derivative: mode of the derivative: "dual", "func" or "finite_difference".
        compile: run the derivative through torch.compile (one to two minutes at the first step).
    """

    is_consistency: ClassVar[bool] = True

    velocity: Literal["teacher", "data"]
    P_mean: float = Field(default=-1.0, ge=-20, le=20)
    P_std: float = Field(default=1.4, gt=0, le=20)
    time_distribution: TimeDistribution = "lognormal"
    normalization: Normalization = "rms"
    c: float = Field(default=0.1, gt=0)
    warmup: Warmup = 10_000
    warmup_unit: Literal["images", "steps"] = "steps"
    adaptive_weight: bool = True
    prior_weight: bool = True
    target_halflife: int = Field(default=0, ge=0)
    stable_target: bool = False
    guidance_scale: GuidanceScale = 1.0
    derivative: Literal["dual", "func", "finite_difference"] = "dual"
    compile: bool = False

    @model_validator(mode="after")
    def _stable_target_is_for_data(self) -> SCM:
        if self.stable_target and self.velocity == "teacher":
            raise ValueError("stable_target false: a teacher's velocity is no average over data")
        return self

    @model_validator(mode="after")
    def _guidance_is_for_a_teacher(self) -> SCM:
        if self.guidance_scale != 1 and self.velocity == "data":
            scale = scale_in_words(self.guidance_scale)
            raise ValueError(
                f"guidance_scale 1, not {scale}: sct has no teacher to guide; remove it, or train with scd"
            )
        return self

    @property
    def needs_teacher(self) -> bool:
        return self.velocity == "teacher"

    @property
    def couples_images(self) -> bool:
        return self.stable_target

    @property
    def forwards_per_image(self) -> float:
        """4: value, tangent (2 passes for a finite difference) and backward pass. A target network adds 1, a teacher 1,
        a guided teacher 2 (a guide is assumed to be as large as the teacher).
        """
        own = 4.0 + (self.derivative == "finite_difference") + (self.target_halflife > 0)
        if self.velocity == "data":
            return own
        return own + (1 if self.guidance_scale == 1 else 2)

    def tangent_warmup(self, nimg: int, step_images: int) -> float:
        """The warm-up r after nimg images, with step_images per optimiser step."""
        return warmup_at(self.warmup, nimg / (step_images if self.warmup_unit == "steps" else 1))

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        check_batch(batch, random)
        net, x_0 = nets["net"], batch.x_0
        t = sample_times(self.time_distribution, self.P_mean, self.P_std, net.sigma_data, random).to(
            x_0.dtype
        )
        z = net.sigma_data * random.normal("z", tuple(x_0.shape[1:]), x_0.dtype)
        x_t = flow.interpolate(x_0, z, t)
        s = drawn_scale(self.guidance_scale, random, x_0.dtype)
        dx_dt = self._velocity(nets, batch, x_t, z, t, s)
        cond = student_conditions(batch, s)  # a scale is constant along the path: it has no tangent

        value, target = self._derivative(nets, x_t, t, dx_dt, cond, random)
        F = target.value
        warmup = self.tangent_warmup(nimg, batch.step_images or len(x_0))
        g = consistency_tangent(x_t, t, F, target.tangent, dx_dt, net.sigma_data, warmup)
        if not self.prior_weight:
            g = g * flow.expand(flow.sigma_from_t(t, net.sigma_data), g)

        error = per_sample((value - F - normalize_tangent(g, self.normalization, self.c)).square())
        u = net.logvar(t) if self.adaptive_weight else None
        loss = weighted(error, u)
        # D dL/dF = 2 exp(-u) (F - sg(F) - g/(|g| + c)), as a root mean square.
        gradient = 2 * error.sqrt() * (1 if u is None else torch.exp(-u))
        logs = {"t": t, "loss": loss.detach(), "tangent_norm": per_sample(g.square()).sqrt()}
        logs["output_gradient"] = gradient.detach()
        return LossOutput({"net": loss.mean()}, logs)

    def _derivative(
        self,
        nets: Nets,
        x_t: Tensor,
        t: Tensor,
        dx_dt: Tensor,
        cond: Mapping[str, Tensor],
        random: SampleRandom,
    ) -> tuple[Tensor, dual.Dual]:
        """F of the trained network, with a graph; F and cos t sin t dF/dt of itself or its EMA, without."""
        # The derivative is taken along (cos t sin t dx/dt, cos t sin t), which keeps it bounded (section 4.2).
        scale = t.cos() * t.sin()
        directions = (flow.expand(scale, x_t) * dx_dt, scale)
        derivative = _compiled_derivative() if self.compile else dual.value_and_tangent
        net, target = nets["net"], nets["target" if self.target_halflife else "net"]
        with seeded_dropout(target, random), nullcontext() if target is net else torch.no_grad():
            output = derivative(target, (x_t, t), directions, mode=self.derivative, cond=cond)
        if target is net:
            value = output.value
        else:
            with seeded_dropout(net, random):
                value = net(x_t, t, **cond)
        return value, dual.Dual(output.value.detach(), output.tangent)

    @torch.no_grad()
    def _velocity(
        self, nets: Nets, batch: Batch, x_t: Tensor, z: Tensor, t: Tensor, s: float | Tensor
    ) -> Tensor:
        if self.stable_target:
            with without_autocast(t.device):  # its products nearly cancel at small times
                return stable_velocity(batch.x_0, z, t, nets["net"].sigma_data, batch.cond)
        if self.velocity == "data":
            return flow.velocity_target(batch.x_0, z, t)
        return guided_teacher(nets, s)(x_t, t, **batch.cond)
