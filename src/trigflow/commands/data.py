"""`trigflow data`: convert images to one archive, encode them as latents, or inspect them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from trigflow.commands.command import Command, add_data_options, add_flag, integer, named_data
from trigflow.system.errors import UserError
from trigflow.system.files import must_be_new

if TYPE_CHECKING:
    from trigflow.data import Collection
    from trigflow.system.config import Component

_SHOWN = 64  # images of the grid


# The flags of each action; --out is everybody's.
_FLAGS = {
    "prepare": {"size", "background", "rgb", "skip_damaged", "resume"},
    "encode": {
        "size",
        "background",
        "skip_damaged",
        "resume",
        "vae",
        "dtype",
        "mean_only",
        "batch",
        "device",
    },
    "inspect": {"vae", "device"},
}


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        choices=tuple(_FLAGS),
        help="prepare: write the images into one zip archive; encode: write latents of them; inspect: print "
        "statistics of images or latents",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="the images: a data set, or a file or folder in one of the formats"
    )
    add_data_options(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE_OR_FOLDER",
        help="prepare: the .zip to write, required; encode: the folder to write, required; inspect: a grid as .png",
    )
    parser.add_argument(
        "--size",
        type=integer(1),
        help="prepare, encode: resize the shorter side to this size and centre-crop to a square (default: unchanged)",
    )
    parser.add_argument(
        "--background",
        metavar="COLOUR",
        help="prepare, encode: colour behind transparent pixels, a name or '#rrggbb' (default: white)",
    )
    add_flag(parser, "--rgb", "prepare: convert all images to RGB (default: as the first image)")
    add_flag(parser, "--skip-damaged", "prepare, encode: skip damaged images (default: stop at the first)")
    add_flag(parser, "--resume", "prepare, encode: resume an interrupted run")
    _add_encoding(parser)


def _add_encoding(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--vae",
        metavar="NAME_OR_PATH",
        help="encode: an AutoencoderKL or AutoencoderDC, a folder or owner/name on the hub, which is downloaded "
        "(default: stabilityai/sd-vae-ft-mse, if downloaded before); inspect: the autoencoder of the latents, if "
        "it is missing from their folder",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        help="encode: type of the stored latents (default: float16)",
    )
    add_flag(
        parser,
        "--mean-only",
        "encode: store only the means of the latents, in half of the space (default: means and standard "
        "deviations; training then samples each latent anew whenever it is used)",
    )
    parser.add_argument(
        "--batch", type=integer(1), help="encode: images in one pass (default: about a million pixels)"
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda", "mps"),
        help="encode, inspect of latents: where to compute (default: auto)",
    )


def _run(args: argparse.Namespace) -> int:
    action = args.action
    for flag in sorted(set().union(*_FLAGS.values()) - _FLAGS[action]):
        if getattr(args, flag):
            others = " and ".join(f"data {name}" for name, flags in _FLAGS.items() if flag in flags)
            raise UserError(f"data {action}: --{flag.replace('_', '-')} is for {others} only; remove it")
    if action == "inspect":
        return _inspect(args)
    from trigflow.system.signals import interrupt_with_resume_hint

    with interrupt_with_resume_hint():
        return (_prepare if action == "prepare" else _encode)(args)


def _source(args: argparse.Namespace) -> Component:
    """The images; --background is one of their options."""
    given = [] if args.background is None else [f"data.background={json.dumps(args.background)}"]
    return named_data(args.source, [*args.overrides, *given])


def _tell(collection: Collection) -> None:
    """What is to be said of the images, and where their labels are from."""
    from trigflow.training.progress import say

    for line in (*collection.notes, collection.labels.line):
        say(line)


def _prepare(args: argparse.Namespace) -> int:
    from trigflow.data import load_collection
    from trigflow.data.prepare.images import Preparation, prepare

    if args.out is None:
        raise UserError("data prepare: --out is missing; give the .zip to write")
    collection = load_collection(_source(args))
    how = Preparation(args.size, args.rgb, args.skip_damaged)
    statistics = prepare(collection, args.out, how, args.resume)
    _tell(collection)
    print(statistics.table(collection.labels.classes))
    print(f"train on it: data={args.out}")
    return 0


def _encode(args: argparse.Namespace) -> int:
    from trigflow.data import load_collection
    from trigflow.data.autoencoder import find, load_autoencoder
    from trigflow.data.formats.latents import latents_table
    from trigflow.data.prepare.encode import Encoding, encode
    from trigflow.system.devices import resolve_device

    if args.out is None:
        raise UserError("data encode: --out is missing; give the folder to write")
    must_be_new(args.out)
    collection = load_collection(_source(args))
    source = find(args.vae)
    autoencoder = load_autoencoder(source[0], resolve_device(args.device or "auto"))
    how = Encoding(args.size, args.dtype or "float16", args.mean_only, args.skip_damaged, args.batch)
    card = encode(collection, autoencoder, source, args.out, how, args.resume)
    _tell(collection)
    print(latents_table(card))
    print(f"train on it: data={args.out}")
    return 0


def _inspect(args: argparse.Namespace) -> int:
    from trigflow.data import load_collection
    from trigflow.data.formats.recognition import recognised
    from trigflow.data.prepare.inspect import inspect
    from trigflow.models.pictures import save_grid

    if args.out is not None and args.out.suffix != ".png":
        raise UserError(f"data inspect: --out {args.out} must end in .png")
    if (recognised(args.source) or ("",))[0] == "latent_folder":
        return _inspect_latents(args)
    collection = load_collection(named_data(args.source, args.overrides))
    statistics, shown = inspect(collection, _SHOWN)
    if args.out is not None:
        save_grid(shown, args.out)
    _tell(collection)
    print(statistics.table(collection.labels.classes))
    return 0


def _inspect_latents(args: argparse.Namespace) -> int:
    """Latents are checked by their digest; a grid shows their images."""
    from dataclasses import replace

    from trigflow.data import load_data
    from trigflow.data.autoencoder import find
    from trigflow.data.formats.latents import LATENTS, check_digest, latents_table, read_latents_card
    from trigflow.models.pictures import save_grid
    from trigflow.system.devices import resolve_device
    from trigflow.training.progress import say

    folder = Path(args.source)
    card = read_latents_card(folder)
    dataset = load_data(named_data(args.source, args.overrides))
    check_digest(folder / LATENTS, card.sha256)
    if args.out is not None and dataset.decoder is not None:
        decoder = dataset.decoder.on(resolve_device(args.device or "auto"))
        if args.vae is not None:
            decoder = replace(decoder, folder=find(args.vae)[0])
        every = max(1, -(-card.count // _SHOWN))
        save_grid(decoder.images(dataset.data[::every]).cpu(), args.out)
    say(dataset.labelling.line)
    print(latents_table(card))
    return 0


COMMAND = Command(
    name="data",
    summary="convert images of any format and size to one archive, encode them as latents, or inspect them",
    example="trigflow data prepare photos/ --out photos-64.zip --size 64",
    add_arguments=_add_arguments,
    run=_run,
)
