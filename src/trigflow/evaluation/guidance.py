"""Student and teacher at the same guidance: the scale of both, and the model that guides the teacher."""

from __future__ import annotations

from pathlib import Path

from trigflow.models.model import Model, load
from trigflow.models.shipped import SHIPPED
from trigflow.system.errors import UserError


def common_scale(student: Model, guidance_scale: float | None) -> float | None:
    """The guidance of a student's teacher: a student that takes the scale is compared at its own, unless one is given.

    Args:
        student: or a teacher that is scored alone.
        guidance_scale: what was asked for; None: nothing.

    Returns:
        A scale, or None: the teacher's own.
    """
    if guidance_scale is None and student.guidance_range is not None:
        return student.card.sampling.guidance_scale
    return guidance_scale


def student_in_steps(student: Model, steps: int, guidance_scale: float | None) -> Model:
    """A student, sampled in so many steps. The scale is an input of one that takes it; others have learned theirs."""
    return student.with_plan(steps, None if student.guidance_range is None else guidance_scale)


def with_own_guide(
    model: Model, teacher: Model | None, guide: Model | str | Path | None, trust_code: bool
) -> Model | None:
    """The reference teacher with the given guide, or the one that it had when the student was distilled.

    Raises:
        UserError: there is nothing to be guided, or no such guide.
    """
    recorded = model.card.recipe.get("guide") if model.is_student else None
    if teacher is None:
        if guide is not None:
            raise UserError("a guide was given, but there is no teacher for it to guide: remove it")
        return None
    if guide is None and (recorded is None or teacher.guide is not None):
        return teacher
    if guide is None and recorded not in SHIPPED and not Path(str(recorded)).is_dir():
        raise UserError(
            f"the guide '{recorded}' of the model's teacher was not found: give its folder with --guide"
        )
    chosen = recorded if guide is None else guide
    return teacher.with_guide(
        chosen if isinstance(chosen, Model) else load(str(chosen), teacher.device, trust_code)
    )
