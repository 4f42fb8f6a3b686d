"""A teacher that is given to a study that trains, in the place of one that is trained for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trigflow.evaluation.training_compute import training_forwards
from trigflow.models.model import Model, load
from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.tools.studies.scored import weights_digest
from trigflow.training.assembly import assemble


@dataclass(frozen=True)
class Cost:
    """What a training took: images, and forward passes."""

    images: int
    forwards: float


def check_given(name: str, student: Recipe, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Loads a teacher and builds a training of its student, to see whether it fits; which it is, as JSON data.

    Args:
        name: a shipped model, or a run's folder.
        student: recipe of a student of it.
        overrides: of the study.

    Raises:
        UserError: no such model, no diffusion model, one of other data or another network than the recipe's, overrides
            of the teacher's recipe, or a card that does not tell what its training cost.
    """
    for one in overrides:
        if one.startswith("teacher."):
            raise UserError(f"'{one}': the teacher '{name}' is given and not trained; remove it")
    teacher = load(name, "cpu")
    if teacher.is_student:
        raise UserError(f"teacher '{name}' is a consistency model: give a diffusion model")
    assemble(student, torch.device("cpu"))
    cost_from_card(teacher)
    return {"teacher_weights": weights_digest(teacher)}


def cost_from_card(model: Model) -> Cost:
    """Of all trainings that the weights went through.

    Raises:
        UserError: the card does not tell.
    """
    total = training_forwards(model)
    if total is None:
        raise UserError(
            f"teacher '{model.name}': its card does not tell what its training cost; choose another teacher"
        )
    return Cost(sum(phase.nimg for phase in model.card.phases), total)
