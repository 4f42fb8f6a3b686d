"""`trigflow reconstruct`: the model of a run with an EMA of another length, from its snapshots."""

from __future__ import annotations

import argparse

from trigflow.commands.command import Command, add_out_folder, how_to_sample, integer, number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the folder of a run with ema.snapshot_nimg > 0")
    parser.add_argument(
        "--ema-std",
        type=number(0.0),
        required=True,
        help="length of the average: its relative standard deviation, between 0 and 0.2886",
    )
    parser.add_argument(
        "--nimg", type=integer(1), help="time of the run, in images (default: the last snapshot's)"
    )
    add_out_folder(parser, "runs/teacher-0.08")


def _run(args: argparse.Namespace) -> int:
    from trigflow.training.run_folder import reconstruct

    folder = reconstruct(args.run, args.out, args.ema_std, args.nimg)
    print(how_to_sample(folder))
    return 0


COMMAND = Command(
    name="reconstruct",
    summary="reconstruct a run's model with an EMA of another length (post-hoc EMA)",
    example="trigflow reconstruct runs/teacher --ema-std 0.08 --out runs/teacher-0.08",
    add_arguments=_add_arguments,
    run=_run,
)
