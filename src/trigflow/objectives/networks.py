"""The networks that an objective uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trigflow.core.guidance import scale_in_words
from trigflow.core.precond import TrigFlowPrecond
from trigflow.objectives.batch import Objective
from trigflow.system.errors import UserError


def networks_of(
    objective: Objective, new: Callable[[str], TrigFlowPrecond], teacher: Any = None, guide: Any = None
) -> dict[str, Any]:
    """All networks by name: the trained ones and, where the objective uses them, "target", "teacher" and "guide".

    Args:
        objective: names the networks that it trains, and whether it needs a teacher or a target network.
        new: makes the network of a name, with the same initial weights each time.
        teacher, guide: the teacher and its guide, or None.
    """
    nets: dict[str, Any] = {name: new(name) for name in objective.trains}
    if objective.target_halflife:
        nets["target"] = new(objective.trains[0]).requires_grad_(False)
    if teacher is not None and objective.needs_teacher:
        nets["teacher"] = teacher
    if guide is not None:
        nets["guide"] = guide
    return nets


def check_guidance_input(net: TrigFlowPrecond, objective: str, scales: tuple[float, float] | None) -> None:
    """Checks that the network takes the guidance scale as an input exactly if the objective draws one.

    Args:
        net: the network to be trained.
        objective: name of the objective.
        scales: the range from which it draws the guidance scale; None: it draws none.

    Raises:
        UserError: the network has the input and the objective draws no scale, or vice versa.
    """
    if net.guidance_input and scales is None:
        raise UserError(
            f"network.guidance_input = true: objective '{objective}' draws no guidance scale; give scd a range, "
            "objective.guidance_scale=[1,2], or remove it"
        )
    if scales is not None and not net.guidance_input:
        raise UserError(
            f"objective.guidance_scale = {scale_in_words(scales)}: a range needs a network that takes the scale as an "
            "input; give network.guidance_input=true"
        )
