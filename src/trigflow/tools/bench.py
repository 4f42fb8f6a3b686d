"""How long sampling takes, beside the evaluations of its network that a teacher of the same size needs."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from tqdm import tqdm

from trigflow.core.samplers import SamplingPlan, count_nfe
from trigflow.data.codecs import IdentityCodec
from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.measure import draw
from trigflow.evaluation.page import markdown_table
from trigflow.evaluation.training_compute import forward_flops
from trigflow.models.card import ModelCard, card_of
from trigflow.models.model import Model
from trigflow.models.storage import new_precond
from trigflow.objectives import new_objective
from trigflow.recipes import RECIPES, get
from trigflow.recipes.schema import Recipe, SamplingConfig
from trigflow.system.devices import products_in, true_float32, wait_for
from trigflow.system.machine import describe_machine
from trigflow.system.timing import time_in_turn
from trigflow.tools.plan.shapes import sample_shape


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Args:
        model: its name.
        parameters: of the network.
        forward_flops: of an evaluation on one sample; a multiplication and an addition are two.
        teacher_nfe: evaluations of a teacher, see `teacher_nfe`.
        batch: samples of a call.
        precision: of the products inside the network.
        evaluation: seconds of one evaluation of the network on a batch, a value of each round.
        sampling: number of steps -> seconds of a whole call, noise included, a value of each round.
        machine: see `describe_machine`.
    """

    model: str
    parameters: int
    forward_flops: int
    teacher_nfe: int
    batch: int
    precision: str
    evaluation: tuple[float, ...]
    sampling: dict[int, tuple[float, ...]]
    machine: dict[str, Any]

    @property
    def teacher(self) -> float:
        """Seconds of a teacher's evaluations, which are extrapolated: one was measured."""
        return self.teacher_nfe * statistics.median(self.evaluation)

    def speedup(self, steps: int) -> float:
        """Of so many steps over the teacher's evaluations."""
        return self.teacher / statistics.median(self.sampling[steps])

    def to_json(self) -> dict[str, Any]:
        """Seconds as medians and in full, ratios, and the machine."""
        rows = {
            str(steps): {
                "seconds": statistics.median(taken),
                "all_seconds": list(taken),
                "speedup": self.speedup(steps),
            }
            for steps, taken in self.sampling.items()
        }
        return {
            "model": self.model,
            "parameters": self.parameters,
            "forward_flops": self.forward_flops,
            "batch": self.batch,
            "precision": self.precision,
            "evaluation": {
                "seconds": statistics.median(self.evaluation),
                "all_seconds": list(self.evaluation),
            },
            "teacher": {"nfe": self.teacher_nfe, "extrapolated_seconds": self.teacher},
            "steps": rows,
            "machine": self.machine,
        }


def random_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a network to time; of "imagenet512-xxl" and its like the student's, imagenet512-xxl-scd.

    Raises:
        UserError: unknown recipe or key.
    """
    student = f"{name}-scd"
    return get(student if name not in RECIPES and student in RECIPES else name, overrides)


def random_model(recipe: Recipe, device: torch.device) -> Model:
    """A recipe's network as a model with fresh weights: its times are those of a trained one.

    Latents stay latents: the autoencoder's time is not in it.

    Raises:
        UserError: an unknown part, or options that do not fit.
    """
    data_shape, num_classes = sample_shape(recipe)
    objective = new_objective(recipe.objective)
    card = card_of(recipe, data_shape, num_classes, objective.kind, objective.guidance_range)
    with device:  # a billion random numbers are drawn where they are used
        precond = new_precond(card).eval().requires_grad_(False).to(device)
    return Model(precond, IdentityCodec(), card, f"{recipe.name}, random weights")


def measure(model: Model, steps: Sequence[int], batch: int, rounds: int, progress: bool = True) -> Timing:
    """Times one evaluation and sampling in turn, after a call of each to warm up.

    Args:
        model: whose network is timed.
        steps: numbers of consistency steps, each >= 1.
        batch: samples of a call, >= 1.
        rounds: >= 1.
        progress: show a bar on stderr.
    """
    calls: dict[int, Callable[[int], object]] = {0: lambda _: _evaluate(model, batch)}
    calls |= {n: partial(draw, _in_steps(model, n), batch) for n in steps}
    with tqdm(total=(1 + rounds) * len(calls), unit="call", disable=not progress) as bar:
        taken = time_in_turn(calls, rounds, after=bar.update)
    return Timing(
        model=model.name,
        parameters=model.num_parameters,
        forward_flops=forward_flops(model),
        teacher_nfe=teacher_nfe(model.card),
        batch=batch,
        precision=model.precision,
        evaluation=tuple(taken[0]),
        sampling={n: tuple(taken[n]) for n in steps},
        machine=describe_machine(model.device),
    )


def teacher_nfe(card: ModelCard) -> int:
    """Evaluations that a teacher of this model takes for a sample, guidance included.

    Those of the model itself if it is one; of a student those of the recipe beside its own, as imagenet512-xxl-teacher
    is beside imagenet512-xxl-scd; where there is none, 63: Heun's method in 32 steps.
    """
    sampling = card.sampling
    if card.kind == "student":
        name = f"{card.name.rpartition('-')[0]}-teacher"
        sampling = RECIPES[name]().sampling if name in RECIPES else SamplingConfig(sampler="heun", steps=32)
    plan = SamplingPlan(sampling.sampler, sampling.steps, sampling.guidance_scale, sampling.t_mid)
    return count_nfe(plan, card.data_shape)


def _in_steps(model: Model, steps: int) -> Model:
    """Sampled in consistency steps, one evaluation each: a teacher's network takes as long as its student's."""
    scale = model.card.sampling.guidance_scale if model.guidance_range else 1.0
    plan = SamplingPlan("consistency", steps, scale, model.card.sampling.t_mid)
    return replace(model, chosen_plan=plan)


@torch.no_grad()
@true_float32()
def _evaluate(model: Model, batch: int) -> None:
    """One evaluation of the network on a batch, as the sampler's: in the middle of the path, with labels."""
    x_t = torch.zeros(batch, *model.card.data_shape, device=model.device)
    t = torch.full((batch,), 1.0, device=model.device)
    scales = torch.full((batch,), model.card.sampling.guidance_scale)
    with products_in(model.precision, model.device):
        model.precond.velocity(x_t, t, **model.conditions(model.labels(batch), scales))
    wait_for(model.device)


def report(timing: Timing) -> str:
    """The timing as text: what was timed, and a table."""
    machine = timing.machine
    where = machine["cpu"] if machine["device"] == "cpu" else machine["device"]
    head = (
        f"{timing.model}: {timing.parameters / 1e6:.1f} million parameters, {timing.forward_flops / 1e9:.4g} GFLOP an "
        f"evaluation; {timing.precision}, batch {timing.batch}, {where}, {machine['threads']} threads"
    )
    evaluation = statistics.median(timing.evaluation)
    rows = [
        ["", "seconds", "range", f"{timing.teacher_nfe} evaluations are slower by"],
        ["one evaluation", f"{evaluation:.4g}", _range(timing.evaluation), ""],
        [f"teacher, {timing.teacher_nfe} evaluations (extrapolated)", f"{timing.teacher:.4g}", "", "1x"],
    ]
    for steps, taken in timing.sampling.items():
        rows.append(
            [
                in_steps(steps),
                f"{statistics.median(taken):.4g}",
                _range(taken),
                f"{timing.speedup(steps):.1f}x",
            ]
        )
    return f"{head}\n\n{markdown_table(rows)}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4g} .. {max(values):.4g}"
