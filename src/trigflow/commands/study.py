"""`trigflow study`: an experiment over many models or trainings, which can be resumed."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from trigflow.commands.command import (
    Command,
    add_device,
    add_out_folder,
    add_overrides,
    integer,
    number,
    several,
)
from trigflow.system.errors import UserError, one_of

# Flags that belong to some studies only; a study's own defaults stand where none is given.
OWN = ("teacher", "method", "features", "data", "num", "seeds", "steps", "shares", "share", "guidance_scale")


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", metavar="NAME", help="which study: steps, speed, scaling, ablation, compute or terms"
    )
    parser.add_argument(
        "subject",
        metavar="MODEL_OR_DATA",
        help="steps, speed: a student, shipped or the folder of a run; the others: a data set with the "
        "recipes NAME-teacher and NAME-scd (or NAME-METHOD)",
    )
    add_overrides(
        parser,
        "for studies that train: change a field of both recipes, or of one of them (teacher.key=value, "
        "student.key=value)",
    )
    add_out_folder(parser, "runs/scaling")
    parser.add_argument("--seeds", type=integer(1), help="number of seeds (default: 3)")
    parser.add_argument("--num", type=integer(2), help="samples for each score (default: 5000)")
    parser.add_argument("--features", help="the features in which samples are scored, as in evaluate")
    parser.add_argument(
        "--teacher",
        help="steps, speed: the teacher (default: the one it was distilled from); compute: one that "
        "is not trained for the study; terms: that of all students (default: the shipped NAME-teacher)",
    )
    parser.add_argument(
        "--method", help="scaling, compute: how students are distilled, scd or scd-vsd (default: scd)"
    )
    parser.add_argument("--data", help="steps, speed: the real data (default: what the model was trained on)")
    parser.add_argument(
        "--steps",
        type=several(integer(1)),
        help="steps, speed: sampling steps of the student (default: 1,2,4,8 and 1,2)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=number(0.0),
        help="steps, speed: guidance scale of the guided teacher, and of a student that takes it as an input; 1 = none",
    )
    parser.add_argument(
        "--shares",
        type=several(number(0.0)),
        help="compute: shares of the teacher's training compute (default: 0.1,0.2,0.5,1,2,5)",
    )
    parser.add_argument(
        "--share",
        type=number(0.0),
        help="terms: share of the teacher's training compute for each row (default: that of the recipe)",
    )
    parser.add_argument(
        "--jobs", type=integer(1), help="trainings run at once, with one thread each (default: one per core)"
    )
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.tools.studies import STUDIES, carry_out

    study = STUDIES[one_of("study", args.study, STUDIES)]
    given = _given(args, study)
    carry_out(study(args.subject, **given), args.out, device=args.device, jobs=args.jobs)
    return 0


def _given(args: argparse.Namespace, study: Any) -> dict[str, Any]:
    """The given flags, which the study must accept.

    Raises:
        UserError: a flag that the study does not accept.
    """
    given = {name: getattr(args, name) for name in OWN if getattr(args, name) is not None}
    if args.overrides:
        given["overrides"] = args.overrides
    takes = [one.name for one in fields(study)][1:]
    for name in given:
        if name not in takes:
            word = args.overrides[0] if name == "overrides" else f"--{name.replace('_', '-')}"
            flags = ", ".join(f"--{one.replace('_', '-')}" for one in takes if one != "overrides")
            raise UserError(f"study {args.study} does not accept {word}; it accepts {flags}")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


COMMAND = Command(
    name="study",
    summary="an experiment over many models or trainings, resumable: steps, speed, scaling, ablation, compute, "
    "terms",
    example="trigflow study scaling digits --seeds 3 --out runs/scaling",
    add_arguments=_add_arguments,
    run=_run,
)
