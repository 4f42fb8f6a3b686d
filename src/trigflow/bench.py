"""How long sampling takes, beside the evaluations of its network that a teacher of the same size needs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from trigflow.checkpoint import ModelCard, new_precond
from trigflow.codecs import IdentityCodec
from trigflow.config import build
from trigflow.devices import products_in
from trigflow.evaluation.training_compute import forward_flops
from trigflow.machine import describe_machine
from trigflow.model import Model
from trigflow.objectives import OBJECTIVES, Objective
from trigflow.page import markdown_table
from trigflow.plan.shapes import sample_shape
from trigflow.recipe import Recipe
from trigflow.recipes import RECIPES, get

TEACHER_NFE = (
    126  # 63 evaluations of Heun's method, each with and without the label: as the paper samples its teachers
)


@dataclass(frozen=True)
class Timing:
    """What was measured.

    Args:
        model: its name.
        parameters: of the network.
        forward_flops: of an evaluation on one sample; a multiplication and an addition are two.
        batch: samples of a call.
        precision: of the products inside the network.
        evaluation: seconds of one evaluation of the network on a batch, a value of each round.
        sampling: number of steps -> seconds of a whole call, noise included, a value of each round.
        teacher_nfe: evaluations that a teacher's sample is reckoned with.
        machine: see `describe_machine`.
    """

    model: str
    parameters: int
    forward_flops: int
    batch: int
    precision: str
    evaluation: tuple[float, ...]
    sampling: dict[int, tuple[float, ...]]
    teacher_nfe: int
    machine: dict[str, Any]

    def speedup(self, steps: int) -> float:
        """Of so many steps over the teacher's evaluations, which are reckoned: one was measured."""
        return self.teacher_nfe * statistics.median(self.evaluation) / statistics.median(self.sampling[steps])

    def to_json(self) -> dict[str, Any]:
        """Seconds as medians and in full, ratios, and the machine."""
        evaluation = statistics.median(self.evaluation)
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
            "evaluation": {"seconds": evaluation, "all_seconds": list(self.evaluation)},
            "teacher": {"nfe": self.teacher_nfe, "reckoned_seconds": self.teacher_nfe * evaluation},
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
    objective: Objective = build(recipe.objective, OBJECTIVES, "objective")
    card = ModelCard(
        name=recipe.name,
        network=recipe.network,
        precond=recipe.precond,
        data_shape=data_shape,
        num_classes=num_classes,
        codec={"name": "identity"},
        data=recipe.data.name,
        objective=recipe.objective.name,
        sampling=recipe.sampling,
        guidance_range=getattr(objective, "guidance_range", None),
    )
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
    plans = {n: model.plan(n, None, "consistency") for n in steps}
    calls: dict[int, Callable[[int], object]] = {0: lambda seed: _evaluate(model, batch)}
    for n, plan in plans.items():
        calls[n] = lambda seed, plan=plan: list(model.sample_batches(batch, plan, seed=seed, batch=batch))  # type: ignore[misc]
    taken: dict[int, list[float]] = {n: [] for n in calls}
    with tqdm(total=(1 + rounds) * len(calls), unit="call", disable=not progress) as bar:
        for seed in range(1 + rounds):
            for n, call in calls.items():
                start = time.perf_counter()
                call(seed)
                _wait(model.device)
                taken[n].append(time.perf_counter() - start)
                bar.update()
    return Timing(
        model=model.name,
        parameters=model.num_parameters,
        forward_flops=forward_flops(model),
        batch=batch,
        precision=model.precision,
        evaluation=tuple(taken[0][1:]),
        sampling={n: tuple(taken[n][1:]) for n in steps},
        teacher_nfe=TEACHER_NFE,
        machine=describe_machine(model.device),
    )


@torch.no_grad()
def _evaluate(model: Model, batch: int) -> None:
    """One evaluation of the network on a batch, as the sampler's: in the middle of the path, with labels."""
    x_t = torch.zeros(batch, *model.card.data_shape, device=model.device)
    t = torch.full((batch,), 1.0, device=model.device)
    scales = torch.full((batch,), model.card.sampling.guidance_scale)
    with products_in(model.precision, model.device):
        model.precond.velocity(x_t, t, **model.conditions(model.labels(batch), scales))


def _wait(device: torch.device) -> None:
    """Until what was asked of a GPU is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        [
            f"teacher, {timing.teacher_nfe} evaluations (reckoned)",
            f"{timing.teacher_nfe * evaluation:.4g}",
            "",
            "1x",
        ],
    ]
    for steps, taken in timing.sampling.items():
        name = "1 step" if steps == 1 else f"{steps} steps"
        rows.append([name, f"{statistics.median(taken):.4g}", _range(taken), f"{timing.speedup(steps):.1f}x"])
    return f"{head}\n\n{markdown_table(rows)}"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4g} .. {max(values):.4g}"
