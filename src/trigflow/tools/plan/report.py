"""A plan as text: a table of memory, the time, and what to change where it does not fit."""

from __future__ import annotations

import math
from collections.abc import Sequence

from trigflow.tools.plan.planning import GIB, USABLE, Choice, TrainingPlan

_ROWS = {
    "weights": "weights",
    "teacher": "weights of the teacher",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "averages": "averages of the weights",
    "gathered": "gathered blocks",
    "activations": "activations",
    "transients": "tangents and other transients",
}


def report(plan: TrainingPlan) -> str:
    """The plan as text of some thirty lines."""
    return "\n\n".join(["\n".join(_head(plan)), _table(plan), "\n".join(_verdict(plan))])


def _head(plan: TrainingPlan) -> list[str]:
    recipe, machine, footprint = plan.recipe, plan.machine, plan.footprint
    gpus = "1 GPU" if machine.gpus == 1 else f"{machine.gpus} GPUs"
    classes = f", {plan.num_classes} classes" if plan.num_classes else ""
    return [
        f"{recipe.name} on {gpus} of {machine.memory:g} GiB",
        f"network    {recipe.network.name}, {footprint.parameters / 1e6:.1f} million parameters; "
        f"samples of shape {plan.data_shape}{classes}",
        f"image      {footprint.forward_flops / 1e9:.4g} GFLOPs per forward pass, "
        f"{footprint.training_flops / 1e9:.4g} per training image",
        f"training   {recipe.train.total_nimg:,} images in batches of {recipe.train.batch:,}, {recipe.train.precision}"
        f"{', activation checkpointing' if plan.checkpointing else ''}: {plan.total_flops:.3g} FLOPs",
        f"time       {duration(plan.seconds)} at {machine.throughput:g} TFLOP/s per GPU (--throughput)",
    ]


def duration(seconds: float) -> str:
    """A number of seconds in days, hours, minutes or seconds."""
    for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"


def _table(plan: TrainingPlan) -> str:
    """Memory of one GPU, a column for each layout."""
    most = max(choice.need.total for choice in plan.choices)
    unit, size = ("GiB", GIB) if most >= GIB else ("MiB", 2**20)
    rows = [[f"{unit} per GPU", *(choice.layout.name for choice in plan.choices)]]
    for field, name in _ROWS.items():
        values = [getattr(choice.need, field) for choice in plan.choices]
        if any(values):
            rows.append([name, *(f"{value / size:.2f}" for value in values)])
    rows.append(["total", *(f"{choice.need.total / size:.2f}" for choice in plan.choices)])
    rows.append(["fits", *("yes" if choice.fits else "no" for choice in plan.choices)])
    rows.append(["microbatch", *(str(choice.microbatch) for choice in plan.choices)])
    rows.append(["microbatches per step", *(str(choice.passes) for choice in plan.choices)])
    rows.append(["largest microbatch", *(str(choice.largest or "none") for choice in plan.choices)])
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


def _verdict(plan: TrainingPlan) -> list[str]:
    limit = (
        f"{USABLE:.0%} of {plan.machine.memory:g} GiB; the rest is for driver, workspaces and fragmentation"
    )
    fitting = [choice for choice in plan.choices if choice.fits]
    if not fitting:
        return [f"It does not fit ({limit}). What to change:", *(f"- {line}" for line in advice(plan))]
    lines = [f"It fits ({limit})."]
    if options := _options(plan, fitting[0]):
        lines.append(f"Run it with {options}.")
    return lines


def _options(plan: TrainingPlan, choice: Choice) -> str:
    """What to add to the command of the training."""
    words = [f"train.microbatch={choice.microbatch}"] if choice.passes > 1 else []
    words += ["--checkpointing"] if plan.checkpointing else []
    if plan.machine.gpus == 1:
        return " ".join(words)
    words = [f"--parallel {choice.layout.name.lower()}", *words]
    return f"`torchrun -m trigflow train` (docs/scale.md) and {' '.join(words)}"


def advice(plan: TrainingPlan) -> list[str]:
    """What to change where no layout fits, the cheapest change first."""
    train, lines = plan.recipe.train, []
    if smaller := [choice for choice in plan.choices if choice.largest]:
        most = max(choice.largest for choice in smaller)
        lines.append(f"--microbatch {most}: smaller microbatches, more of them per step")
    if train.precision == "float32":
        lines.append("train.precision=bfloat16 (or float16): halves most activations")
    if not smaller and not plan.checkpointing:
        lines.append("--checkpointing: keeps the inputs of blocks only, for one more forward pass per image")
    if len(plan.recipe.ema.ema_std) > 1 and plan.recipe.ema.kind == "power":
        lines.append("fewer averages in ema.ema_std: each is as large as the weights")
    gpus = plan.gpus_needed()
    if gpus is not None and gpus > plan.machine.gpus:
        lines.append(f"--gpus {gpus}: the fewest on which it fits with FSDP")
    if gpus is None:
        lines.append(f"on GPUs of {plan.machine.memory:g} GiB it does not fit, however many")
    least = min(choice.need.total for choice in plan.choices) / USABLE / GIB
    lines.append(f"--memory {math.ceil(10 * least) / 10:g}: GPUs large enough for it as it is")
    return lines
