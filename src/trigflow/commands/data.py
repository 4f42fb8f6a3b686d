"""`trigflow data`: bring images into one archive, or look at them."""

from __future__ import annotations

import argparse
from pathlib import Path

from trigflow.commands.command import Command, integer
from trigflow.errors import UserError

_SHOWN = 64  # images of the grid


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=("prepare", "inspect"),
        help="prepare: write the images into one zip archive; inspect: print their statistics",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="images: a data set, or a file or folder in one of the formats"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="prepare: the .zip to write, required; inspect: a grid as .png",
    )
    parser.add_argument(
        "--size",
        type=integer(1),
        help="prepare: shorter side to so many pixels, then the square in the middle (default: as they are)",
    )
    parser.add_argument(
        "--rgb", action="store_true", help="prepare: write all in RGB (default: as the first is)"
    )
    parser.add_argument(
        "--skip-damaged",
        action="store_true",
        help="prepare: leave damaged images out (default: stop at the first)",
    )
    parser.add_argument("--resume", action="store_true", help="prepare: go on with a run that was stopped")


def _run(args: argparse.Namespace) -> int:
    return _prepare(args) if args.action == "prepare" else _inspect(args)


def _prepare(args: argparse.Namespace) -> int:
    from trigflow.data import load_collection
    from trigflow.data.prepare import Preparation, prepare

    if args.out is None:
        raise UserError("data prepare: --out is missing; give the .zip to write")
    collection = load_collection(args.source)
    how = Preparation(args.size, args.rgb, args.skip_damaged)
    statistics = prepare(collection, args.out, how, args.resume)
    print(statistics.table(collection.classes))
    print(f"train on it: data={args.out}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from trigflow.data import load_collection
    from trigflow.data.inspect import inspect
    from trigflow.pictures import save_grid

    for flag in ("size", "rgb", "skip_damaged", "resume"):
        if getattr(args, flag):
            raise UserError(f"data inspect: --{flag.replace('_', '-')} is for data prepare; leave it out")
    if args.out is not None and args.out.suffix != ".png":
        raise UserError(f"data inspect: --out {args.out} must end in .png")
    collection = load_collection(args.source)
    statistics, shown = inspect(collection, _SHOWN)
    if args.out is not None:
        save_grid(shown, args.out)
    print(statistics.table(collection.classes))
    return 0


COMMAND = Command(
    name="data",
    summary="bring images of any format and size into one archive, or look at them",
    example="trigflow data prepare photos/ --out photos-64.zip --size 64",
    add_arguments=_add_arguments,
    run=_run,
)
