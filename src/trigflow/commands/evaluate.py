"""`trigflow evaluate`: score a model against its teacher and write the report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from trigflow.commands.command import (
    Command,
    add_data_options,
    add_device,
    add_flag,
    add_guide,
    add_model,
    add_trust_code,
    add_vae,
    integer,
    number,
    several,
)
from trigflow.system.errors import UserError

if TYPE_CHECKING:
    from trigflow.system.distributed import World


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_data_options(parser, "data.split=test or test_data.key=images")
    parser.add_argument(
        "--steps", type=several(integer(1)), help="sampling steps of a student (default: 1,2,4)"
    )
    parser.add_argument("--num", type=integer(2), default=5000, help="samples for each score (default: 5000)")
    parser.add_argument(
        "--seeds",
        type=integer(1),
        default=3,
        help="repetitions of each score; the median is reported (default: 3)",
    )
    parser.add_argument(
        "--features",
        type=several(str),
        metavar="FEATURES",
        help="the features in which samples are scored, separated by commas; the first give the main score. Each is a "
        "name or NAME=FILE (`trigflow list features`), a classifier's folder, or package.module:Class "
        "(default: the shipped classifiers for digits and MNIST, pixels elsewhere)",
    )
    parser.add_argument(
        "--teacher", help="the model to compare with, or none (default: the one it was distilled from)"
    )
    parser.add_argument(
        "--data",
        help="the real data (default: what the model was trained on); for a latent model images, or latents to decode",
    )
    parser.add_argument(
        "--test-data",
        metavar="DATA",
        help="held-out real data, scored in a row of its own (default: the test split of the data, if there is one)",
    )
    parser.add_argument(
        "--noise-levels",
        type=several(number(0.0)),
        default=[],
        metavar="SDS",
        help="extra rows for comparison: the held-out images with noise of these standard deviations, in "
        "pixel values of 0..255, e.g. 5,10",
    )
    parser.add_argument(
        "--guidance-scale",
        type=number(0.0),
        help="guidance scale of the teacher, and of a student that takes it as an input; 1 = none (default: the "
        "student's own if it takes it, else the teacher's)",
    )
    add_guide(parser, "the teacher")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="a folder for the full report (default: only print the table)"
    )
    add_flag(
        parser,
        "--resume",
        "continue an interrupted evaluation in --out; scores of the same models are reused",
    )
    add_vae(parser)
    add_trust_code(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.system.distributed import open_world

    if args.resume and args.out is None:
        raise UserError("--resume continues the evaluation in a folder: give its --out")
    with open_world(args.device) as world:
        return _evaluate(args, world)


def _evaluate(args: argparse.Namespace, world: World) -> int:
    """Each process draws its share of the samples; the first scores and writes."""
    from trigflow.evaluation.evaluate import evaluate
    from trigflow.evaluation.report import to_markdown
    from trigflow.system.config import with_options

    real = with_options({"data": args.data, "test_data": args.test_data}, args.overrides)
    report = evaluate(
        args.model,
        steps=args.steps,
        num=args.num,
        seeds=args.seeds,
        features=args.features,
        teacher=args.teacher,
        data=real["data"],
        out=args.out,
        guidance_scale=args.guidance_scale,
        device=world.device,
        trust_code=args.trust_code,
        resume=args.resume,
        guide=args.guide,
        test_data=real["test_data"],
        noise_levels=args.noise_levels,
        world=world,
        vae=args.vae,
    )
    if world.is_main:
        print(to_markdown(report))
        if args.out is not None:
            print(f"report: {args.out / 'report.html'}")
    return 0


COMMAND = Command(
    name="evaluate",
    summary="score a model against its teacher: Frechet distance, time, evaluations, compute",
    example="trigflow evaluate digits --steps 1,2,4 --num 5000 --seeds 3 --out report",
    add_arguments=_add_arguments,
    run=_run,
)
