"""`trigflow info`: what a model is, from its card."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trigflow.commands.command import Command, add_model, add_trust_code

if TYPE_CHECKING:
    from trigflow.models.model import Model


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_trust_code(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.models.model import load
    from trigflow.system.errors import printable

    for what, text in _facts(load(args.model, "cpu", args.trust_code)):
        print(printable(f"{what:<12} {text}"))
    return 0


def _facts(model: Model) -> Iterator[tuple[str, str]]:
    from trigflow.models.shipped import model_folder
    from trigflow.system.numbers import count_of

    card, plan = model.card, model.default_plan
    yield "model", f"{model.name} ({model_folder(model.name)})"
    yield "kind", "student: a consistency model" if model.is_student else "teacher: a diffusion model"
    yield "samples", f"{'x'.join(map(str, model.sample_shape))}, {_classes(model.num_classes)}"
    yield "data", card.data
    yield "network", f"{card.network.name}, {model.num_parameters:,} parameters"
    yield "time input", f"c_noise = {card.precond.c_noise}, sigma_data = {card.precond.sigma_data:g}"
    yield (
        "sampled by",
        f"{plan.sampler}, {count_of(plan.steps, 'step')}, guidance scale {plan.guidance_scale:g}",
    )
    if model.guidance_range:
        yield "guidance", "scales of {:g} to {:g}, an input of the network".format(*model.guidance_range)
    for phase in card.phases:
        yield "trained", f"{phase.name}, {phase.nimg:,} images"


def _classes(number: int) -> str:
    return f"{number} class{'' if number == 1 else 'es'}" if number else "no classes"


COMMAND = Command(
    name="info",
    summary="what a model is: its kind, samples, classes, network, and how it is sampled and was trained",
    example="trigflow info digits",
    add_arguments=_add_arguments,
    run=_run,
)
