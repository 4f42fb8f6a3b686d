"""`trigflow train`: train a recipe, or resume an interrupted run."""

from __future__ import annotations

import argparse

from trigflow.commands.command import (
    Command,
    add_device,
    add_flag,
    add_out_folder,
    add_recipe,
    how_to_sample,
    integer,
)
from trigflow.system.launch import is_main


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_out_folder(parser, "runs/teacher")
    add_flag(parser, "--resume", "resume from the newest checkpoint in --out")
    parser.add_argument(
        "--data", metavar="PATH_OR_NAME", help="train on this data set instead of the recipe's"
    )
    parser.add_argument("--seed", type=integer(0), help="random seed (default: the recipe's)")
    parser.add_argument(
        "--parallel",
        choices=("fsdp", "hsdp", "ddp"),
        help="under torchrun: shard the weights over all processes, over those of each machine, or replicate them "
        "(default: fsdp)",
    )
    add_flag(
        parser,
        "--checkpointing",
        "activation checkpointing of the network's blocks: less memory for a third more compute, same results",
    )
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow import recipes
    from trigflow.training.loop import train

    recipe = recipes.get(args.recipe, _overrides(args), args.trust_code)
    folder = train(
        recipe,
        args.out,
        resume=args.resume,
        device=args.device,
        progress=True,
        parallel=args.parallel,
        checkpointing=args.checkpointing,
        trust_code=args.trust_code,
    )
    if is_main():
        print(how_to_sample(folder))
    return 0


def _overrides(args: argparse.Namespace) -> list[str]:
    """--data and --seed as overrides; the last one wins."""
    named = {"data": args.data, "train.seed": args.seed}
    return [*args.overrides, *(f"{key}={value}" for key, value in named.items() if value is not None)]


COMMAND = Command(
    name="train",
    summary="train a recipe: a diffusion teacher, or a consistency model (sCT, sCD)",
    example="trigflow train digits-scd teacher=runs/teacher train.batch=64 --out runs/student",
    add_arguments=_add_arguments,
    run=_run,
)
