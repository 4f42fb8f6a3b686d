"""`trigflow train-classifier`: train the small classifier in whose features samples are scored."""

from __future__ import annotations

import argparse

from trigflow.commands.command import (
    Command,
    add_data_options,
    add_device,
    add_out_folder,
    add_seed,
    integer,
    named_data,
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data",
        metavar="DATA",
        help="the labelled images: a data set, or a file or folder in one of the formats",
    )
    add_data_options(parser)
    parser.add_argument("--epochs", type=integer(1), default=40, help="passes over the data (default: 40)")
    parser.add_argument(
        "--network", default="convolutions", help="convolutions or residual (default: convolutions)"
    )
    parser.add_argument(
        "--augment",
        default="normal",
        help="how the images are rotated, resized and shifted at random: normal (a little, some more) or uniform (up "
        "to 10 degrees, 10 %% and 2 pixels in 28); never mirrored (default: normal)",
    )
    add_out_folder(parser, "runs/classifier")
    add_seed(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    from trigflow.data import load_data
    from trigflow.evaluation.metrics.classifier_training import train_classifier
    from trigflow.system.devices import resolve_device
    from trigflow.training.progress import say

    device = resolve_device(args.device)
    data = load_data(named_data(args.data, args.overrides))
    for note in data.notes:
        say(note)
    options = {"network": args.network, "augment": args.augment}
    accuracy = train_classifier(data, args.out, args.seed, args.epochs, device, **options)
    print(f"accuracy on held-out images: {accuracy:.2%}")
    print(f"use it: trigflow evaluate MODEL --features {args.out} --out report")
    return 0


COMMAND = Command(
    name="train-classifier",
    summary="train a small classifier, in whose features samples can be scored",
    example="trigflow train-classifier digits --out runs/classifier",
    add_arguments=_add_arguments,
    run=_run,
)
