"""Which networks an objective works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trigflow.objectives.batch import Objective, target_halflife
from trigflow.precond import TrigFlowPrecond


def networks_of(
    objective: Objective, new: Callable[[], TrigFlowPrecond], teacher: Any = None, guide: Any = None
) -> dict[str, Any]:
    """All networks by name: the trained ones, their "target", the "teacher" and its "guide" where wanted.

    Args:
        objective: names the networks that it trains, and says what else it needs.
        new: makes a network to be trained, with the same initial weights each time.
        teacher, guide: as the objective is to find them; None where there are none.
    """
    nets: dict[str, Any] = {name: new() for name in objective.trains}
    if target_halflife(objective):
        nets["target"] = new().requires_grad_(False)
    if teacher is not None and objective.needs_teacher:
        nets["teacher"] = teacher
    if guide is not None:
        nets["guide"] = guide
    return nets
