"""sCD and score distillation together (arXiv 2410.11081, "sCD + VSD", Table 7)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from trigflow.core.randomness import SampleRandom
from trigflow.objectives.batch import Batch, LossOutput, Nets
from trigflow.objectives.scm import SCM
from trigflow.objectives.vsd import VSD
from trigflow.system.config import STRICT_KEYS

# Of the VSD term's gradient, in k: fake starts as the teacher, and what differs then is nothing, or rounding.
_SMALLEST_GRADIENT = 1e-4


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class SCDVSD(VSD, SCM):
    """sCD at all times, and VSD of the step from t_max: L = L_scd + vsd_weight k L_vsd.

    sCD spreads the samples as the teacher does, VSD sharpens those of one step. k makes the gradients of both with
    respect to the network's output equally large, as root mean squares over the batch, so that vsd_weight compares
    like with like. The logged "loss" is that of VSD, "loss_scd" that of sCD.

    Args:
        vsd_weight: lambda, the weight of the VSD term.
        matched: multiply it by k; if false, k = 1.
        scd_share: share of the images that have the sCD term, which costs about as much as the other: the first ones
            of each microbatch, one at least.
    """

    velocity: Literal["teacher"] = "teacher"
    vsd_weight: float = Field(default=1.0, ge=0)
    matched: bool = True
    scd_share: float = Field(default=1.0, gt=0, le=1)

    @property
    def couples_images(self) -> bool:
        return self.matched or self.scd_share < 1 or super().couples_images

    def forwards_of(self, due: frozenset[str]) -> float:
        scd = super(VSD, self).forwards_per_image if "net" in due else 0.0
        return VSD.forwards_of(self, due) + self.scd_share * scd

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        vsd = VSD.__call__(self, nets, batch, nimg, random)
        if not batch.updates("net"):
            return vsd
        images = max(1, round(self.scd_share * len(batch.x_0)))
        scd = SCM.__call__(self, nets, *_first(images, batch, random, nimg))
        gradients = [scd.logs["output_gradient"], vsd.logs["output_gradient"]]
        own, other = (gradient.square().mean().sqrt() for gradient in gradients)
        k = own / other.clamp_min(_SMALLEST_GRADIENT) if self.matched else 1.0
        losses = {**vsd.losses, "net": scd.losses["net"] + self.vsd_weight * k * vsd.losses["net"]}
        logs = {f"{name}_scd": scd.logs[name] for name in ("loss", "output_gradient")}
        return LossOutput(losses, {**vsd.logs, **logs, "tangent_norm": scd.logs["tangent_norm"]})


def _first(images: int, batch: Batch, random: SampleRandom, nimg: int) -> tuple[Batch, int, SampleRandom]:
    """The arguments of an objective for the first images of a batch."""
    cond = {name: values[:images] for name, values in batch.cond.items()}
    part = replace(batch, x_0=batch.x_0[:images], cond=cond, step_images=batch.step_images or len(batch.x_0))
    return part, nimg, SampleRandom(random.seed, random.index[:images])
