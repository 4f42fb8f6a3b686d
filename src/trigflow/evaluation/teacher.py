"""The teacher that a model is scored beside: the one that it was distilled from, or another that fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from trigflow.evaluation.guidance import with_own_guide
from trigflow.models.model import Model, load
from trigflow.models.shipped import SHIPPED
from trigflow.system.errors import UserError

NO_TEACHER = "none"


def reference_teacher(
    model: Model,
    teacher: Model | str | Path | None,
    trust_code: bool,
    guide: Model | str | Path | None = None,
) -> tuple[Model | None, list[str]]:
    """The reference teacher with its guide, and what is to say where there is none; a teacher is its own reference."""
    found, notes = _found_teacher(model, teacher, trust_code)
    return with_own_guide(model, found, guide, trust_code), notes


def _found_teacher(
    model: Model, teacher: Model | str | Path | None, trust_code: bool
) -> tuple[Model | None, list[str]]:
    if not model.is_student and teacher not in (None, NO_TEACHER):
        raise UserError(f"'{model.name}' is a diffusion model, its own reference: leave the teacher out")
    if isinstance(teacher, Model):
        return _fitting(model, teacher), []
    if teacher == NO_TEACHER and model.is_student:
        return None, ["Without a teacher, as asked for: there are no ratios."]
    if teacher is not None and teacher != NO_TEACHER:
        return _fitting(model, load(teacher, model.device, trust_code)), []
    return _own_teacher(model, trust_code) if model.is_student else (model, [])


def _own_teacher(student: Model, trust_code: bool) -> tuple[Model | None, list[str]]:
    """What the student was distilled from, if that is a model and lies where it lay."""
    name = f"{student.name}-teacher"
    if name not in SHIPPED:
        name = student.card.recipe.get("teacher") or ""
    if name in ("", "exact"):
        return None, [
            "The model was trained without a teacher model: there are no ratios (--teacher names one)."
        ]
    if name not in SHIPPED and not Path(name).is_dir():
        return None, [
            f"The model's teacher '{name}' was not found, so there are no ratios (give its folder with --teacher)."
        ]
    return _fitting(student, load(name, student.device, trust_code)), []


def _fitting(model: Model, teacher: Model) -> Model:
    if teacher.is_student:
        raise UserError(f"teacher '{teacher.name}' is a consistency model: give a diffusion model")
    ours, theirs = model.card, teacher.card
    if ours.data_shape != theirs.data_shape or ours.num_classes != theirs.num_classes:
        wanted, found = (f"{card.data_shape} in {card.num_classes} classes" for card in (ours, theirs))
        raise UserError(
            f"teacher '{teacher.name}' makes {found}, model '{model.name}' {wanted}: choose another teacher"
        )
    if model.decoder is not None or teacher.decoder is not None:
        if getattr(model.decoder, "sha256", None) != getattr(teacher.decoder, "sha256", None):
            raise UserError(
                f"teacher '{teacher.name}' and model '{model.name}' have different autoencoders: choose another teacher"
            )
        return replace(teacher, decoder=model.decoder)
    return teacher
