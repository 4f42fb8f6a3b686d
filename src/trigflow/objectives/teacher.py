"""The teacher's velocity as objectives use it: guided, at one scale or at one that is drawn for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from trigflow.core.guidance import ConditionalVelocity, autoguided, guided, scales_in
from trigflow.core.randomness import SampleRandom
from trigflow.objectives.batch import Batch, Nets


def drawn_scale(
    guidance_scale: float | tuple[float, float], random: SampleRandom, dtype: torch.dtype
) -> float | Tensor:
    """The guidance scale of a batch: the number, or one per image (B,), uniform in the range (appendix G)."""
    if not isinstance(guidance_scale, tuple):
        return guidance_scale
    return scales_in(*guidance_scale, random.uniform("guidance", dtype=dtype))


def student_conditions(batch: Batch, s: float | Tensor) -> dict[str, Tensor]:
    """The conditions of the trained networks: those of the batch, and a scale that is drawn for each image."""
    return {**batch.cond, "guidance": s} if isinstance(s, Tensor) else dict(batch.cond)


def guided_teacher(nets: Nets, s: float | Tensor) -> ConditionalVelocity:
    """velocity(x_t, t, **cond) of nets["teacher"], guided by its null label or by nets["guide"] where there is one.

    Args:
        nets: networks by name.
        s: guidance scale, a number or (B,); 1 is no guidance.
    """
    teacher, guide = nets["teacher"], nets.get("guide")
    if not isinstance(s, Tensor) and s == 1:
        return teacher.velocity
    if guide is None:
        return guided(teacher.velocity, s, teacher.num_classes)
    return autoguided(teacher.velocity, guide.velocity, s)
