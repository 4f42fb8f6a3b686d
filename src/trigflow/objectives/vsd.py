"""Score distillation of the first sampling step (VSD, DMD, SiD), alone and beside sCD (arXiv 2410.11081, "sCD + VSD").

A second network, "fake", is a diffusion model of the student's own samples. Where its denoiser D_fake differs from the
teacher's D, the student's samples have another density than the teacher's, and they are moved along the difference:

    x_0 = f(sigma_data eps, t_max),   x_t = cos(t) x_0 + sin(t) z,   dL/dx_0 = w (D_fake(x_t, t) - D(x_t, t))

This is the gradient of KL(student || teacher) between the marginals at t (Wang et al., arXiv 2305.16213; Yin et al.,
arXiv 2311.18828). At its minimum D_fake = D for all x_t, and the student's law is the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass as plain_dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trigflow.core import flow
from trigflow.core.guidance import ConditionalVelocity, GuidanceScale
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.networks.dropout import seeded_dropout
from trigflow.objectives.batch import Batch, LossOutput, Nets, Objective, check_batch
from trigflow.objectives.diffusion import diffusion_loss, per_sample, sample_times
from trigflow.objectives.teacher import drawn_scale, guided_teacher, student_conditions
from trigflow.system.config import STRICT_KEYS
from trigflow.system.errors import UserError

Weighting = Literal["vsd", "dmd", "sid"]
_SMALLEST_DISTANCE = 1e-5  # of x_0 from the teacher's D, by which DMD and SiD divide


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class VSD(Objective):
    """Trains "net" by the difference of "fake" and the teacher on its samples of one step, and "fake" on these samples.

    With `second_share` above 0 the samples of two steps have a model of their own, "fake_mid".

    Args:
        weighting: of the difference. "vsd": F_teacher - F_fake, as in the paper; "dmd": D_fake - D over the mean of
            |x_0 - D| of the image; "sid": the loss of SiD (arXiv 2404.04057, equation 23) over the same mean, with
            gradients through both networks.
        sid_alpha: alpha of "sid".
        vsd_P_mean, vsd_P_std: times of the difference, log(sigma_data tan t) ~ N(vsd_P_mean, vsd_P_std^2).
        fake_P_mean, fake_P_std: times at which fake is trained. If they are those of the difference, one pass of fake
            serves both.
        guidance_scale: of the teacher, as for scd; with a range both networks take the scale as an input.
        fake_adaptive_weight: fake learns its weight u(t).
        second_share: share of the images whose samples are those of two steps: the sample of one step, noised to t_mid,
            is mapped to x_0 once more, and the second step is trained. They are the first images of each microbatch.
        t_mid: where the second step starts; that of the recipe's sampling.
    """

    is_consistency: ClassVar[bool] = True
    needs_teacher: ClassVar[bool] = True
    weighting: Weighting = "dmd"
    sid_alpha: float = Field(default=1.0, ge=0, le=10)
    vsd_P_mean: float = Field(default=0.4, ge=-20, le=20)
    vsd_P_std: float = Field(default=2.0, gt=0, le=20)
    fake_P_mean: float = Field(default=-0.8, ge=-20, le=20)
    fake_P_std: float = Field(default=1.6, gt=0, le=20)
    guidance_scale: GuidanceScale = 1.0
    fake_adaptive_weight: bool = True
    second_share: float = Field(default=0.0, ge=0, lt=1)
    t_mid: float = Field(default=flow.T_MID, gt=0, lt=math.pi / 2)

    @property
    def trains(self) -> tuple[str, ...]:
        return ("net", *self._shares)

    @property
    def initial_weights(self) -> dict[str, str]:
        return dict.fromkeys(self._shares, "teacher")

    @property
    def couples_images(self) -> bool:
        return self.second_share > 0

    @property
    def _shares(self) -> dict[str, float]:
        """The models of the samples, and their shares of the images: those of two steps, which are first, have one."""
        if self.second_share == 0:
            return {"fake": 1.0}
        return {"fake": 1 - self.second_share, "fake_mid": self.second_share}

    @property
    def forwards_per_image(self) -> float:
        return self.forwards_of(frozenset(self.trains))

    def forwards_of(self, due: frozenset[str]) -> float:
        """A sample of net 1 (3 with its backward pass), fake 3, and for the difference fake 1 and the teacher 1 or 2.

        A sample of two steps has 1 more; "sid" also has the backward passes to the inputs of fake and teacher.
        """
        return self._sample_forwards(due) + self._fake_forwards(due) + self._difference_forwards(due)

    def _sample_forwards(self, due: frozenset[str]) -> float:
        return self.second_share + (3.0 if "net" in due else 1.0)

    def _fake_forwards(self, due: frozenset[str]) -> float:
        return 3.0 * sum(share for name, share in self._shares.items() if name in due)

    def _difference_forwards(self, due: frozenset[str]) -> float:
        if "net" not in due:
            return 0.0
        teacher = 1 if self.guidance_scale == 1 else 2
        fake = sum(share for name, share in self._shares.items() if not (name in due and self._one_pass))
        return 2.0 * (fake + teacher) if self.weighting == "sid" else fake + teacher

    @property
    def _one_pass(self) -> bool:
        same = (self.vsd_P_mean, self.vsd_P_std) == (self.fake_P_mean, self.fake_P_std)
        return same and self.weighting != "sid"

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        check_batch(batch, random)
        given = _given(self.guidance_scale, batch, random)
        parts = self._parts(len(batch.x_0))
        x_0, t_start = self._samples(nets["net"], batch, given, parts.get("fake_mid"))
        compared = {
            name: self._compared(nets, name, x_0.detach()[images], given.of(images), batch.updates)
            for name, images in parts.items()
        }
        losses, logs = {}, {"t": torch.cat([one.t for one in compared.values()])}
        for name, one in compared.items():
            if one.loss is not None:
                losses[name], logs[f"loss_{name}"] = one.loss.mean(), one.loss.detach()
        gradients = [one.gradient for one in compared.values() if one.gradient is not None]
        if gradients:
            gradient = torch.cat(gradients)
            # Its gradient is `gradient` / D, its value half the mean square of `gradient`.
            loss = 0.5 * per_sample((gradient + x_0 - x_0.detach()).square())
            losses["net"], logs["loss"] = loss.mean(), loss.detach()
            # D dL/dF, as x_0 = cos(t) x_t - sin(t) sigma_data F at the start of the step.
            logs["output_gradient"] = (
                nets["net"].sigma_data * t_start.sin() * per_sample(gradient.square()).sqrt()
            )
        return LossOutput(losses, logs)

    def _parts(self, count: int) -> dict[str, slice]:
        """The images whose samples each model has, in their order."""
        if self.second_share == 0:
            return {"fake": slice(0, count)}
        if count < 2:
            raise UserError(
                "second_share needs passes of two images at least: give a larger train.microbatch"
            )
        second = min(max(1, round(self.second_share * count)), count - 1)
        return {"fake_mid": slice(0, second), "fake": slice(second, count)}

    def _samples(
        self, net: TrigFlowPrecond, batch: Batch, given: _Given, second: slice | None
    ) -> tuple[Tensor, Tensor]:
        """x_0 of one step, of two for the first images, `second`, and the t where the last step starts.

        The last step has a graph if this training step updates net.
        """
        size, dtype = tuple(batch.x_0.shape[1:]), batch.x_0.dtype
        x_t = net.sigma_data * given.random.normal("x_T", size, dtype)
        t = x_t.new_full((len(x_t),), flow.t_from_sigma(flow.SIGMA_MAX, net.sigma_data))
        if second is not None:
            own = given.of(second)
            with torch.no_grad(), seeded_dropout(net, own.random):
                x_0 = net.denoised(x_t[second], t[second], **own.student)
            t_mid = t.new_full((len(x_0),), self.t_mid)
            z = net.sigma_data * own.random.normal("z_mid", size, dtype)
            x_t = torch.cat([flow.interpolate(x_0, z, t_mid), x_t[second.stop :]])
            t = torch.cat([t_mid, t[second.stop :]])
        with seeded_dropout(net, given.random), nullcontext() if batch.updates("net") else torch.no_grad():
            return net.denoised(x_t, t, **given.student), t

    def _compared(
        self, nets: Nets, name: str, x_0: Tensor, given: _Given, updates: Callable[[str], bool]
    ) -> _Compared:
        """The loss of a model of samples on its part of them, and their gradient, as far as the step needs them."""
        fake = nets[name]
        noised = _noised("fake", x_0, self.fake_P_mean, self.fake_P_std, fake, given.random)
        t, loss, v_fake, gradient = noised.t, None, None, None
        if updates(name):
            with seeded_dropout(fake, given.random):
                F = fake(noised.x_t, t, **given.student)
            loss, _ = diffusion_loss(fake, F, x_0, noised.z, t, self.fake_adaptive_weight)
            v_fake = fake.sigma_data * F
        if updates("net"):
            if not self._one_pass:
                noised = _noised("vsd", x_0, self.vsd_P_mean, self.vsd_P_std, fake, given.random)
                v_fake = None
            with seeded_dropout(fake, given.random):
                gradient = self._gradient(fake, guided_teacher(nets, given.s), noised, given, v_fake)
        return _Compared(t, loss, gradient)

    def _gradient(
        self,
        fake: TrigFlowPrecond,
        teacher: ConditionalVelocity,
        noised: _Noised,
        given: _Given,
        v_fake: Tensor | None,
    ) -> Tensor:
        """w (D_fake - D), (B, ...): D times the gradient of the loss of an image of D elements, without a graph.

        Args:
            fake: the model of the samples.
            teacher: guided velocity.
            noised: the samples at the times of the difference.
            given: their conditions.
            v_fake: the velocity of fake there, if it is known.
        """
        if self.weighting == "sid":
            return _sid_gradient(fake, teacher, noised, given, self.sid_alpha)
        x_t, t = noised.x_t, noised.t
        with torch.no_grad():
            v = fake.velocity(x_t, t, **given.student) if v_fake is None else v_fake.detach()
            v_teacher = teacher(x_t, t, **given.teacher)
        if self.weighting == "vsd":
            return (v_teacher - v) / fake.sigma_data
        D_teacher = flow.denoised(x_t, v_teacher, t)
        return (flow.denoised(x_t, v, t) - D_teacher) / _distance(noised.x_0, D_teacher)


@plain_dataclass(frozen=True)
class _Given:
    """What images are made of and under: s, the conditions of net and fake and of the teacher, random numbers."""

    s: float | Tensor
    student: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor]
    random: SampleRandom

    def of(self, images: slice) -> _Given:
        """That of some of the images."""
        s = self.s[images] if isinstance(self.s, Tensor) else self.s
        student, teacher = (
            {name: values[images] for name, values in cond.items()} for cond in (self.student, self.teacher)
        )
        return _Given(s, student, teacher, SampleRandom(self.random.seed, self.random.index[images]))


def _given(guidance_scale: float | tuple[float, float], batch: Batch, random: SampleRandom) -> _Given:
    s = drawn_scale(guidance_scale, random, batch.x_0.dtype)
    return _Given(s, student_conditions(batch, s), batch.cond, random)


@plain_dataclass(frozen=True)
class _Compared:
    """A part of the samples: the times of the loss of its model, this loss, and the gradient of the samples."""

    t: Tensor
    loss: Tensor | None
    gradient: Tensor | None


@plain_dataclass(frozen=True)
class _Noised:
    """Samples x_0 and their x_t = cos(t) x_0 + sin(t) z, without a graph."""

    x_0: Tensor
    z: Tensor
    t: Tensor

    @cached_property
    def x_t(self) -> Tensor:
        return flow.interpolate(self.x_0, self.z, self.t)


def _noised(
    name: str, x_0: Tensor, P_mean: float, P_std: float, net: TrigFlowPrecond, random: SampleRandom
) -> _Noised:
    t = sample_times("lognormal", P_mean, P_std, net.sigma_data, random, f"{name} t").to(x_0.dtype)
    z = net.sigma_data * random.normal(f"{name} z", tuple(x_0.shape[1:]), x_0.dtype)
    return _Noised(x_0, z, t)


def _distance(x_0: Tensor, D: Tensor) -> Tensor:
    """mean |x_0 - D| of each image, without a graph, (B, 1, ...)."""
    return flow.expand(per_sample((x_0 - D).abs()).detach().clamp_min(_SMALLEST_DISTANCE), x_0)


def _sid_gradient(
    fake: TrigFlowPrecond, teacher: ConditionalVelocity, noised: _Noised, given: _Given, alpha: float
) -> Tensor:
    """D times the gradient of SiD's loss: (D_T - D_fake) . [(D_T - x_0) - alpha (D_T - D_fake)] / mean |x_0 - D_T|."""
    x_0 = noised.x_0.detach().requires_grad_()
    with torch.enable_grad():
        x_t = flow.interpolate(x_0, noised.z, noised.t)
        D_fake = fake.denoised(x_t, noised.t, **given.student)
        D_teacher = flow.denoised(x_t, teacher(x_t, noised.t, **given.teacher), noised.t)
        difference = D_teacher - D_fake
        loss = difference * ((D_teacher - x_0) - alpha * difference) / _distance(x_0, D_teacher)
        (gradient,) = torch.autograd.grad(loss.sum(), x_0)
    return gradient
