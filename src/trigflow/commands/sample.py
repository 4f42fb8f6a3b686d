"""`trigflow sample`: draw samples from a model, as an image grid or an array."""

from __future__ import annotations

import argparse
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trigflow.commands.command import (
    Command,
    add_device,
    add_flag,
    add_guide,
    add_model,
    add_precision,
    add_seed,
    add_trust_code,
    add_vae,
    integer,
    number,
    several,
)
from trigflow.system.errors import UserError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from trigflow.system.distributed import World

ENDINGS = (".png", ".npz", ".npy")


@dataclass(frozen=True)
class _Target:
    """Where samples are written: a file, or a folder of numbered pictures."""

    path: Path
    is_folder: bool

    def __str__(self) -> str:
        return f"{self.path}/" if self.is_folder else str(self.path)


def _target(text: str) -> _Target:
    return _Target(Path(text), text.endswith(("/", os.sep)) or Path(text).is_dir())


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--steps", type=integer(1), help="sampling steps (default: the model's own; students: 2)"
    )
    parser.add_argument("--num", type=integer(1), default=16, help="number of samples (default: 16)")
    parser.add_argument(
        "--out",
        type=_target,
        required=True,
        metavar="FILE",
        help=".png: an image grid; .npz or .npy: the samples as an array; DIR/: numbered .png files, and dataset.json"
        " with their labels",
    )
    parser.add_argument(
        "--labels",
        type=several(str),
        help="comma-separated classes by name or number, taken in turn (default: all that the model was trained on)",
    )
    parser.add_argument(
        "--guidance-scale",
        type=number(0.0),
        help="guidance scale; 1 = none; a student that takes it: in its training range (default: the model's own)",
    )
    add_guide(parser, "a diffusion model")
    add_precision(parser)
    parser.add_argument("--sampler", help="a name from `trigflow list samplers` (default: the model's own)")
    add_vae(parser)
    add_flag(parser, "--latents", "for a latent model: write latents (.npz or .npy) instead of images")
    add_seed(parser)
    add_trust_code(parser)
    add_device(parser)


def _run(args: argparse.Namespace) -> int:
    _check_target(args.out, args.latents)
    from trigflow.system.distributed import open_world

    with open_world(args.device) as world:
        return _sample(args, world)


def _check_target(out: _Target, latents: bool) -> None:
    from trigflow.system.files import is_occupied

    if not out.is_folder and out.path.suffix not in ENDINGS:
        raise UserError(
            f"--out {out}: the name must end in one of {', '.join(ENDINGS)}, or in / for a folder of pictures"
        )
    if out.is_folder and is_occupied(out.path):
        raise UserError(f"--out {out}: the folder has files in it; choose another, or remove them")
    if latents and (out.is_folder or out.path.suffix == ".png"):
        raise UserError(f"--out {out}: latents cannot be drawn; choose a name that ends in .npz or .npy")


def _sample(args: argparse.Namespace, world: World) -> int:
    """Each process draws its share; the first writes them."""
    import torch

    from trigflow.models.labels import label_of
    from trigflow.models.model import load
    from trigflow.system.files import make_folder
    from trigflow.system.numbers import count_of
    from trigflow.training.progress import counted

    with world.together():
        model = load(args.model, world.device, args.trust_code, args.vae).in_precision(args.precision)
        if args.guide is not None:
            model = model.with_guide(load(args.guide, world.device, args.trust_code))
    plan = model.plan(args.steps, args.guidance_scale, args.sampler)
    if args.guide is not None and plan.guidance_scale == 1:
        raise UserError(f"--guide {args.guide}: a guidance scale of 1 is none; give --guidance-scale")
    asked = args.labels and [label_of(text, model.card.classes) for text in args.labels]
    labels = model.labels(args.num, asked)
    counter = model.counter()
    batches = model.sample_batches(
        args.num, plan, labels, args.seed, latents=args.latents, world=world, counter=counter
    )
    samples = torch.cat(list(counted(batches, args.num, "samples", progress=world.is_main)))
    if world.is_main:
        if args.out.is_folder:
            _write_folder(samples, labels, args.out.path)
        else:
            make_folder(args.out.path.parent)
            _write(samples, labels, args.out.path)
        counts = (count_of(args.num, "sample"), plan.sampler, count_of(plan.steps, "step"))
        print(f"{args.out}: {', '.join(counts)}, {count_of(counter.nfe, 'evaluation')} each")
        if asked and labels is not None and model.card.classes:
            named = [f"{number} ({model.card.classes[number]})" for number in labels[: len(asked)].tolist()]
            print(printable(f"labels: {', '.join(named)}"))
    return 0


def _write_folder(samples: Tensor, labels: Tensor | None, folder: Path) -> None:
    """000000.png, 000001.png, ...; and their labels in dataset.json, as EDM's data sets have them."""
    from PIL import Image

    from trigflow.data.labels import TABLE, table_of_labels
    from trigflow.models.pictures import png
    from trigflow.system.files import make_folder, write_atomically, write_json

    if samples.ndim != 4 or samples.shape[1] not in (1, 3):
        raise UserError(
            f"--out {folder}/: samples of the shape {tuple(samples.shape[1:])} are no pictures; choose .npz"
        )
    make_folder(folder)
    names = [f"{number:06d}.png" for number in range(len(samples))]
    for name, image in zip(names, samples.movedim(1, -1).squeeze(-1).numpy(), strict=True):
        write_atomically(folder / name, png(Image.fromarray(image)))
    if labels is not None:
        entries = list(zip(names, labels.tolist(), strict=True))
        write_json(folder / TABLE, table_of_labels(entries))


def _write(samples: Tensor, labels: Tensor | None, file: Path) -> None:
    """The whole file or nothing."""
    import numpy as np

    from trigflow.models.pictures import save_grid
    from trigflow.system.files import write_atomically

    if file.suffix == ".png":
        return save_grid(samples, file)
    content = io.BytesIO()
    if file.suffix == ".npy":
        np.save(content, samples.numpy())
    else:
        arrays = {"samples": samples.numpy()} | ({} if labels is None else {"labels": labels.numpy()})
        np.savez_compressed(content, allow_pickle=False, **arrays)
    write_atomically(file, content.getvalue())


COMMAND = Command(
    name="sample",
    summary="draw samples from a model, as an image grid or an array",
    example="trigflow sample digits --steps 2 --num 64 --out digits.png",
    add_arguments=_add_arguments,
    run=_run,
)
