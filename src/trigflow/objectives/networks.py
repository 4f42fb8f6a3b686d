"""Which networks an objective works with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trigflow.core.guidance import scale_in_words
from trigflow.core.precond import TrigFlowPrecond
from trigflow.objectives.batch import Objective, target_halflife
from trigflow.system.errors import UserError


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


def check_guidance_input(net: TrigFlowPrecond, objective: str, scales: tuple[float, float] | None) -> None:
    """A network that takes the guidance scale needs an objective that draws it, and vice versa.

    Args:
        net: to be trained.
        objective: its name.
        scales: the range that it draws from, None for none.

    Raises:
        UserError: one without the other.
    """
    if net.guidance_input and scales is None:
        raise UserError(
            f"network.guidance_input = true: objective '{objective}' draws no scale for it; give scd a range, "
            "objective.guidance_scale=[1,2], or remove it"
        )
    if scales is not None and not net.guidance_input:
        raise UserError(
            f"objective.guidance_scale = {scale_in_words(scales)}: a range needs a network that takes the scale as an "
            "input; give network.guidance_input=true"
        )
