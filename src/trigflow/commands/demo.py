"""`trigflow demo`: train, distil and score a model of digits."""

from __future__ import annotations

import argparse

from trigflow.commands.command import Command, add_device, add_out_folder, add_seed


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_out_folder(parser, "demo")
    add_seed(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.tools import demo

    demo.run(args.out, device=args.device, seed=args.seed)
    return 0


COMMAND = Command(
    name="demo",
    summary="train a teacher on handwritten digits, distil it, score the student: about 5 minutes on two cores",
    example="trigflow demo --out demo",
    add_arguments=_add_arguments,
    run=_run,
)
