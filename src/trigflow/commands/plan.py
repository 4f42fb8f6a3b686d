"""`trigflow plan`: estimate what a training will need: memory, FLOPs, days."""

from __future__ import annotations

import argparse

from trigflow.commands.command import Command, add_flag, add_json, add_recipe, integer, number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    parser.add_argument("--gpus", type=integer(1), default=8, help="number of GPUs (default: 8)")
    parser.add_argument(
        "--memory", type=number(0.1), default=80.0, help="memory of each GPU, in GiB (default: 80)"
    )
    parser.add_argument(
        "--throughput",
        type=number(0.001),
        default=150.0,
        help="sustained TFLOP/s of each GPU in training (default: 150, a guess for an A100 or H100 in bfloat16)",
    )
    parser.add_argument(
        "--microbatch",
        type=integer(1),
        help="images per pass on one GPU (default: the recipe's, else as many as fit)",
    )
    text = "plan with activation checkpointing of the network's blocks, as in `trigflow train`"
    add_flag(parser, "--checkpointing", text)
    add_json(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow import recipes
    from trigflow.system.files import write_json
    from trigflow.tools import plan

    machine = plan.Machine(gpus=args.gpus, memory=args.memory, throughput=args.throughput)
    made = plan.make_plan(
        recipes.get(args.recipe, args.overrides, args.trust_code),
        machine,
        args.microbatch,
        args.checkpointing,
    )
    if args.json:
        write_json(args.json, made.to_json())
    print(plan.report(made))
    return 0


COMMAND = Command(
    name="plan",
    summary="estimate what a training will need on your GPUs: memory, FLOPs, days",
    example="trigflow plan imagenet512-xxl-scd --gpus 8 --memory 80",
    add_arguments=_add_arguments,
    run=_run,
)
