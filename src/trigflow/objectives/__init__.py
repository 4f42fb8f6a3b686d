"""Training objectives. A new objective is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from trigflow.objectives.batch import Batch, LossOutput, Nets, Objective, check_objective
from trigflow.objectives.diffusion import Diffusion
from trigflow.objectives.scd_vsd import SCDVSD
from trigflow.objectives.scm import SCM, consistency_tangent, normalize_tangent
from trigflow.objectives.vsd import VSD
from trigflow.system.config import Component, build
from trigflow.system.errors import errors_reported

OBJECTIVES: dict[str, Callable[..., Any]] = {
    "diffusion": Diffusion,
    "sct": partial(SCM, velocity="data"),
    "scd": partial(SCM, velocity="teacher"),
    "vsd": VSD,
    "scd_vsd": SCDVSD,
}


def new_objective(component: Component) -> Objective:
    """The objective of a recipe: a name in OBJECTIVES or "package.module:Class", with its options.

    Raises:
        UserError: unknown name or option, a value out of range, or an object that is no valid Objective.
    """
    objective = build(component, OBJECTIVES, "objective")
    with errors_reported("objective", component.name):  # its attributes may be properties
        return check_objective(objective, component.name)


__all__ = [
    "OBJECTIVES",
    "SCDVSD",
    "SCM",
    "VSD",
    "Batch",
    "Diffusion",
    "LossOutput",
    "Nets",
    "Objective",
    "consistency_tangent",
    "new_objective",
    "normalize_tangent",
]
