"""`trigflow doctor`: is the derivative of this network right, and what does each way to it cost?"""

from __future__ import annotations

import argparse

from trigflow.commands.command import Command, add_device


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a run's folder, or package.module:Class"
    )
    add_device(parser)


def _run(args: argparse.Namespace) -> None:
    from trigflow import doctor

    print(doctor.report(doctor.diagnose(args.model, device=args.device)))


COMMAND = Command(
    name="doctor",
    summary="check the derivative of a network in every mode, and name what breaks it",
    example="trigflow doctor my_package.networks:MyUNet",
    add_arguments=_add_arguments,
    run=_run,
)
