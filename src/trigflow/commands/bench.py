"""`trigflow bench`: time one and two sampling steps against one network evaluation."""

from __future__ import annotations

import argparse

from trigflow.commands.command import (
    Command,
    add_device,
    add_flag,
    add_json,
    add_overrides,
    add_precision,
    add_trust_code,
    integer,
    several,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a shipped model or the folder of a run; with --random a recipe, or the first part of its name",
    )
    add_overrides(parser, "with --random: change a field of the recipe")
    add_flag(parser, "--random", "time a recipe's network with random weights (as fast as trained ones)")
    parser.add_argument(
        "--steps", type=several(integer(1)), default=[1, 2], help="sampling steps (default: 1,2)"
    )
    parser.add_argument("--batch", type=integer(1), default=1, help="samples per call (default: 1)")
    parser.add_argument(
        "--rounds", type=integer(1), default=3, help="timed calls of each, interleaved (default: 3)"
    )
    add_precision(parser)
    add_json(parser)
    add_trust_code(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.models.model import load
    from trigflow.system.devices import resolve_device
    from trigflow.system.errors import UserError
    from trigflow.system.files import write_json
    from trigflow.tools import bench

    if args.random:
        recipe = bench.random_recipe(args.model, args.overrides)
        model = bench.random_model(recipe, resolve_device(args.device))
    elif args.overrides:
        raise UserError(
            f"{args.overrides[0]}: a trained model has no fields to change; use --random to time a recipe"
        )
    else:
        model = load(args.model, args.device, args.trust_code)
    timing = bench.measure(model.in_precision(args.precision), args.steps, args.batch, args.rounds)
    if args.json:
        write_json(args.json, timing.to_json())
    print(bench.report(timing))
    return 0


COMMAND = Command(
    name="bench",
    summary="time sampling, against the evaluations that a teacher of the same size needs",
    example="trigflow bench imagenet512-xxl --random --steps 1,2",
    add_arguments=_add_arguments,
    run=_run,
)
