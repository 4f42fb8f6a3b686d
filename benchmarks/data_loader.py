"""Images per second of the loader alone beside those of a diffusion training step.

    python benchmarks/data_loader.py --json results/data_loader.json

The loader: which rows (`rows`), the images themselves, encoded as x_0, for a set in memory and for one that is
mapped from a file. The step: loader, forward, backward and optimiser of a U-Net of 16 channels, batch 128, eager. All
take turns, so that another process on the machine slows them alike; each figure is a median. The aim: the loader
gives 3 times as many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from trigflow.codecs import ImageCodec
from trigflow.data import Dataset, rows
from trigflow.networks import NETWORKS
from trigflow.objectives import Batch
from trigflow.objectives.diffusion import Diffusion
from trigflow.precond import TrigFlowPrecond
from trigflow.randomness import SampleRandom

BATCH = 128
AIM = 3.0
SIZES = {32: 20_000, 64: 5_000}  # pixels a side -> images
CPU = torch.device("cpu")
OPTIONS = {"channels": 16, "channel_mult": (1, 2), "num_blocks": 1}


def datasets(side: int, folder: Path) -> dict[str, Dataset]:
    """Random images in memory, and the same mapped from a file."""
    images = np.random.default_rng(0).integers(0, 256, (SIZES[side], 3, side, side), dtype=np.uint8)
    path = folder / f"{side}.npy"
    np.save(path, images)
    codec = ImageCodec.measure(torch.from_numpy(images[:1000]))
    kinds = {"memory": images, "mapped": np.load(path, mmap_mode="c")}
    return {
        kind: Dataset(kind, torch.from_numpy(data), None, 0, codec, mapped=kind == "mapped")
        for kind, data in kinds.items()
    }


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
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for turn in range(repetitions + 1):  # the first is a warm-up
        for name, case in cases.items():
            start = time.perf_counter()
            case(turn)
            if turn:
                seconds[name].append((time.perf_counter() - start) / (1 if name == "step" else 10))
    rate = {name: BATCH / statistics.median(times) for name, times in seconds.items()}
    return [
        {
            "side": side,
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
    args = parser.parse_args()
    torch.set_num_threads(2)
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
        args.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
