"""Images per second of the loader alone beside those of a diffusion training step.

    python benchmarks/data_loader.py --json results/data_loader.json

The loader: which rows (`rows`), the images themselves, encoded as x_0, for a set in memory, for one that is mapped from
a .npy file, and for a zip archive of PNGs, which is decoded once and then mapped from the cache. The step: loader,
forward, backward and optimiser of a U-Net of 16 channels (0.14M parameters: a small one, larger ones raise the ratio),
batch 128, eager. All take turns, so that another process on the machine slows them alike; each figure is a median. The
aim: the loader gives 3 times as many.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset, cache, load_data, rows
from trigflow.networks import NETWORKS
from trigflow.objectives import Batch
from trigflow.objectives.diffusion import Diffusion
from trigflow.system.machine import describe_machine
from trigflow.system.timing import time_in_turn

BATCH = 128
AIM = 3.0
SIZES = {32: 20_000, 64: 5_000}  # pixels a side -> images
CPU = torch.device("cpu")
OPTIONS = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1}


def datasets(side: int, folder: Path) -> dict[str, Dataset]:
    """Random images in memory, mapped from a .npy file, and from a zip archive, decoded into the cache."""
    images = np.random.default_rng(0).integers(0, 256, (SIZES[side], 3, side, side), dtype=np.uint8)
    path = folder / f"{side}.npy"
    np.save(path, images)
    kinds = {"memory": load_data(str(saved_npz(images, folder)))}
    with mock.patch.object(cache, "MAPPED_BYTES", 0), mock.patch.dict(os.environ, TRIGFLOW_CACHE=str(folder)):
        kinds["mapped"] = load_data(str(path))
        kinds["zip"] = load_data(str(saved_zip(images, folder)))
    assert kinds["mapped"].mapped and kinds["zip"].mapped and not kinds["memory"].mapped
    return kinds


def saved_npz(images: np.ndarray, folder: Path) -> Path:
    np.savez(folder / "images.npz", images=images)
    return folder / "images.npz"


def saved_zip(images: np.ndarray, folder: Path) -> Path:
    """In EDM's layout."""
    path = folder / f"images-{images.shape[-1]}.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for row, image in enumerate(images):
            buffer = io.BytesIO()
            Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png", compress_level=1)
            archive.writestr(f"{row // 1000:05d}/img{row:08d}.png", buffer.getvalue())
    return path


def load(dataset: Dataset, turn: int) -> torch.Tensor:
    """x_0 of one batch."""
    return dataset.encoded(rows(0, turn * BATCH, BATCH, len(dataset.data)), CPU)


def training(dataset: Dataset) -> Callable[[int], object]:
    """A step of diffusion training."""
    torch.manual_seed(0)
    net = TrigFlowPrecond(NETWORKS["unet"](dataset.data_shape, **OPTIONS))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    objective = Diffusion()

    def step(turn: int) -> None:
        first = turn * BATCH
        random = SampleRandom(0, torch.arange(first, first + BATCH))
        output = objective({"net": net}, Batch(load(dataset, turn), {}, BATCH), first, random)
        optimizer.zero_grad()
        sum(output.losses.values()).backward()
        optimizer.step()

    return step


def measure(side: int, folder: Path, repetitions: int) -> list[dict[str, object]]:
    """Rows of the table for one size."""
    sets = datasets(side, folder)
    cases: dict[str, Callable[[int], object]] = {
        kind: lambda turn, dataset=dataset: [load(dataset, turn * 10 + k) for k in range(10)]
        for kind, dataset in sets.items()
    }
    cases["step"] = training(sets["memory"])
    batches = {name: 1 if name == "step" else 10 for name in cases}
    seconds = time_in_turn(cases, repetitions)
    rate = {name: batches[name] * BATCH / statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "side": side,
            "threads": torch.get_num_threads(),
            "data": kind,
            "loader": rate[kind],
            "step": rate["step"],
            "ratio": rate[kind] / rate["step"],
        }
        for kind in sets
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the table there, too")
    parser.add_argument("--repetitions", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        table = [row for side in SIZES for row in measure(side, Path(folder), args.repetitions)]
    print("| images | data | loader, img/s | training step, img/s | ratio |\n|:--|:--|--:|--:|--:|")
    for row in table:
        verdict = "" if float(str(row["ratio"])) >= AIM else f" (below {AIM:g})"
        print(
            f"| {row['side']}x{row['side']}x3 | {row['data']} | {row['loader']:.0f} | {row['step']:.0f} "
            f"| {row['ratio']:.1f}{verdict} |"
        )
    if args.json:
        command = "python benchmarks/data_loader.py --json results/data_loader.json"
        content = {"command": command, "machine": describe_machine("cpu"), "rows": table}
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
