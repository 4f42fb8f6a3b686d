"""`trigflow doctor`: is the derivative of this network right, and what does each mode cost?"""

from __future__ import annotations

import argparse

from trigflow.commands.command import Command, add_device, add_trust_code, integer, several


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", help="a shipped model, a run's folder, or package.module:Class"
    )
    parser.add_argument(
        "--shape",
        type=several(integer(1)),
        help="shape of one sample, for package.module:Class, e.g. 1,8,8 (default: 3,32,32)",
    )
    add_trust_code(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.tools import doctor

    shape = tuple(args.shape) if args.shape else None
    diagnosis = doctor.diagnose(args.model, data_shape=shape, device=args.device, trust_code=args.trust_code)
    print(doctor.report(diagnosis))
    return 0 if diagnosis.healthy else 1  # for scripts


COMMAND = Command(
    name="doctor",
    summary="check the derivative of a network in every mode, and name what breaks it",
    example="trigflow doctor my_package.networks:MyUNet --shape 3,32,32",
    add_arguments=_add_arguments,
    run=_run,
)
