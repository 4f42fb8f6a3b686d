"""How fast the output changes with t: where |dF/dt| explodes, the derivative is right, and the student is noise."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trigflow.core import flow
from trigflow.core.precond import TrigFlowPrecond
from trigflow.dual import value_and_tangent
from trigflow.tools.doctor.subject import Subject

# To where sampling starts, and denser near pi/2: there log(sigma), or a time of 0..1000 that depends on it, runs away.
TIMES = (*(0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.5, 1.54), flow.t_from_sigma(flow.SIGMA_MAX, 0.5))
TIMES_THE_MEDIAN = 10.0


@dataclass(frozen=True)
class Slope:
    """|dF/dt| at one time.

    Args:
        t: the time.
        size: root mean square of dF/dt over the samples and their elements, x fixed.
    """

    t: float
    size: float


def slopes_of(subject: Subject, mode: str) -> tuple[Slope, ...]:
    """|dF/dt| at TIMES, by a mode that works."""
    found = []
    for t in TIMES:
        times = torch.full_like(subject.t, t)
        with torch.no_grad():
            moved = value_and_tangent(
                lambda t: subject.output(subject.x, t), (times,), (torch.ones_like(times),), mode=mode
            )
        found.append(Slope(t, float(moved.tangent.square().mean().sqrt())))
    return tuple(found)


def exploding(slopes: Sequence[Slope]) -> tuple[Slope, ...]:
    """Those above TIMES_THE_MEDIAN times the median of all, or not finite."""
    if not slopes:
        return ()
    limit = TIMES_THE_MEDIAN * statistics.median(slope.size for slope in slopes)
    return tuple(slope for slope in slopes if not slope.size <= limit)


def command_for_c_noise_t(name: str, subject: Subject) -> str:
    """The command that trains the network on as a teacher whose time input is t."""
    folder = Path(name)
    recipe, start = "TEACHER_RECIPE", "TEACHER"
    if ":" not in name and (folder / "recipe.json").is_file():
        recipe, start = str(folder / "recipe.json"), name
    ours = isinstance(subject.network, TrigFlowPrecond) and subject.network.c_noise != "t"
    change = "precond.c_noise=t" if ours else "network=package.module:NetworkOfT"
    return f"trigflow train {recipe} init={start} {change} --out runs/teacher-of-t"
