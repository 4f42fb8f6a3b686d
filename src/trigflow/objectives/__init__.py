"""Training objectives. A new objective is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trigflow.objectives.batch import Batch, LossOutput, Nets, Objective
from trigflow.objectives.diffusion import Diffusion
from trigflow.objectives.scm import SCM, consistency_tangent, normalize_tangent

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "diffusion": Diffusion,
    "sct": partial(SCM, velocity="data"),
    "scd": partial(SCM, velocity="teacher"),
}

__all__ = [
    "OBJECTIVES",
    "SCM",
    "Batch",
    "Diffusion",
    "LossOutput",
    "Nets",
    "Objective",
    "consistency_tangent",
    "normalize_tangent",
]
