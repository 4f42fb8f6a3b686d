"""What a model's training cost, from its card: evaluations of the network, and FLOPs beside its teacher's.

Sampling compute alone hides the price of a student. Here a pass through the network is the
unit: 1 forward, 2 backward, 1 for a tangent (`Objective.forwards_per_image`). Networks of different sizes are weighted
by the FLOPs of a forward pass, counted by torch.utils.flop_counter on one sample: matrix products, convolutions and
attention, which are nearly all of the work; parameters would say little of a network that shares its weights over
pixels. What the optimiser, the averages of the weights and the loading of data cost is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from trigflow.core.precond import TrigFlowPrecond
from trigflow.models.card import ModelCard, TrainingPhase
from trigflow.models.model import Model
from trigflow.objectives import OBJECTIVES, Objective, new_objective
from trigflow.objectives.cost import mean_forwards
from trigflow.recipes.schema import with_current_names
from trigflow.system.config import Component, validate
from trigflow.system.errors import UserError
from trigflow.training.synthetic import evaluations_per_sample


def training_forwards(model: Model, teacher: Model | None = None) -> float | None:
    """Forward passes that the training cost: nimg x forwards_per_image, and those of the teacher's samples.

    Of all trainings that the weights went through, if they are the model's own kind (`ModelCard.earlier`).

    Args:
        model: whose card tells how it was trained.
        teacher: that made the samples of `train.synthetic`, at its evaluations a sample.

    Returns:
        None where the card does not tell: no recipe, no images counted, an objective of the user's own (its code is not
        run for this), or samples of a teacher that was not found, or that cannot have made them.
    """
    own, samples = _own_forwards(model.card), _forwards_of_samples(model.card, teacher)
    return None if own is None or samples is None else own + samples


def _total(parts: Iterable[float | None]) -> float | None:
    """None if one is not known."""
    known = list(parts)
    return None if None in known else sum(part for part in known if part is not None)


def training_share(student: Model, teacher: Model) -> float | None:
    """FLOPs of a student's training over those of its teacher's, without the teacher's own; None as above.

    The teacher's passes during distillation are priced as the student's: both have one architecture.
    """
    ours, theirs = _own_forwards(student.card), _own_forwards(teacher.card)
    samples = _forwards_of_samples(student.card, teacher)
    if ours is None or theirs is None or samples is None:
        return None
    student_flops, teacher_flops = forward_flops(student), forward_flops(teacher)
    whole = theirs * teacher_flops
    return (ours * student_flops + samples * teacher_flops) / whole if whole else None


def forward_flops(model: Model) -> int:
    """FLOPs of a forward pass on one sample, see `pass_flops`."""
    x = torch.zeros(1, *model.card.data_shape, device=model.device)
    return pass_flops(model.precond, x, model.conditions(model.labels(1), torch.ones(1)))


@torch.no_grad()
def pass_flops(net: TrigFlowPrecond, x: Tensor, cond: Mapping[str, Tensor]) -> int:
    """FLOPs of a forward pass on x (1, ...) (a multiplication and an addition are two); 0 without any product."""
    # The counter does not know every fused kernel of attention, the CPU's among them; written out, it counts all.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        net(x, torch.full((1,), math.pi / 4, device=x.device), **cond)
    return int(counter.get_total_flops())


def _objective(phase: TrainingPhase) -> Objective | None:
    try:
        component = validate(Component, with_current_names(phase.recipe).get("objective"), "objective")
        if component.name not in OBJECTIVES:
            return None
        objective = new_objective(component)
    except UserError:  # a card of another version, or of another program: it does not tell
        return None
    return objective


def _own_forwards(card: ModelCard) -> float | None:
    return _total(_own_forwards_of(phase) for phase in card.phases)


def _own_forwards_of(phase: TrainingPhase) -> float | None:
    objective = _objective(phase)
    if objective is None or not phase.nimg:
        return None
    return phase.nimg * mean_forwards(objective, _update_periods(phase.recipe, objective))


def _update_periods(recipe: Mapping[str, Any], objective: Objective) -> dict[str, int]:
    """Of the trained networks, from a recipe of any version; 1 where it does not tell."""
    named = recipe.get("optimizers")
    configs = {name: named.get(name) if isinstance(named, dict) else None for name in objective.trains}
    return {name: _update_period(config or recipe.get("optimizer")) for name, config in configs.items()}


def _update_period(config: Any) -> int:
    period = config.get("update_period") if isinstance(config, dict) else None
    return period if isinstance(period, int) and period > 0 else 1


def _forwards_of_samples(card: ModelCard, teacher: Model | None) -> float | None:
    return _total(_forwards_of_samples_of(phase, teacher) for phase in card.phases)


def _forwards_of_samples_of(phase: TrainingPhase, teacher: Model | None) -> float | None:
    """Of `train.synthetic`, as synthetic_data makes them; 0 for a model that was trained on the data itself."""
    training: Any = phase.recipe.get("train")
    num = training.get("synthetic", 0) if isinstance(training, dict) else 0
    if num == 0:
        return 0.0
    if teacher is None or type(num) is not int:
        return None
    objective = _objective(phase)
    scale = 1.0 if objective is None else objective.guidance_scale
    try:
        return float(num * evaluations_per_sample(teacher, scale, bool(phase.recipe.get("guide"))))
    except UserError:  # it cannot be guided: another one than made the samples
        return None
