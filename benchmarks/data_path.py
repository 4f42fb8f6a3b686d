"""The gap between two training steps while the next batch comes, with and without reading it ahead.

    python benchmarks/data_path.py --json results/data_path.json
    python benchmarks/data_path.py --device cuda --network dit --width 768 --depth 12 --batch 128

Rows as large as ImageNet-512's latents (8x64x64 numbers in float16: 64 KiB), with labels, and without a spread, whose
random numbers take far longer on a CPU than reading: in memory; mapped from a file that the page cache holds; and
mapped from one that it does not hold ("disk": the pages are given back before each round). A step is that of diffusion
training: batch, forward, backward, a look at the loss, which waits for the device as a training does, optimiser. All
cases take turns, and each figure is a median.

The gap of the host is the time from the end of a step to the batch in hand; that of the GPU, the time between the last
kernel of the optimiser and the first of the objective: what makes x_0 from the stored rows is part of it.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trigflow.core.precond import TrigFlowPrecond
from trigflow.data import Dataset
from trigflow.data.codecs import LatentCodec
from trigflow.evaluation.page import markdown_table
from trigflow.networks import NETWORKS
from trigflow.objectives import Batch
from trigflow.objectives.diffusion import Diffusion
from trigflow.recipes.schema import TrainConfig
from trigflow.system.devices import resolve_device, true_float32, wait_for
from trigflow.system.distributed import World
from trigflow.system.machine import describe_machine
from trigflow.system.timing import time_in_turn
from trigflow.training.batches import Batches

SHAPE, CLASSES = (8, 64, 64), 1000
CODEC = LatentCodec((0.0,), (1.0,), "0" * 64, "random", 8)


def write_latents(path: Path, count: int) -> None:
    """A .npy file of random numbers, (count, *SHAPE) float16."""
    numbers = np.random.default_rng(0).random((256, *SHAPE), np.float32).astype(np.float16)
    array = np.lib.format.open_memmap(path, "w+", np.float16, (count, *SHAPE))
    for first in range(0, count, len(numbers)):
        array[first : first + len(numbers)] = numbers[: count - first]
    array.flush()


def mapped(path: Path) -> Dataset:
    stored = torch.from_numpy(np.load(path, mmap_mode="c"))
    labels = torch.arange(len(stored)) % CLASSES
    return Dataset("latents", stored, labels, CLASSES, CODEC, mapped=True)


def in_memory(path: Path) -> Dataset:
    dataset = mapped(path)
    return replace(dataset, data=dataset.data.clone(), mapped=False)


def give_back_pages(path: Path) -> None:
    """So that the file is read from the disk; no map of it may be left."""
    gc.collect()
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class Measured:
    """Of one case: images a second in each round, and seconds of every gap."""

    rates: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    gpu: list[float] = field(default_factory=list)


def optimiser_step(network: str, options: dict[str, Any], device: torch.device) -> Callable[..., None]:
    """A step of diffusion training; `begun` is called before its first kernel."""
    torch.manual_seed(0)
    net = TrigFlowPrecond(NETWORKS[network](SHAPE, num_classes=CLASSES, **options)).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-4)
    objective = Diffusion()

    def step(batch: Batch, first: int, random: Any) -> None:
        output = objective({"net": net}, batch, first, random)
        loss = output.losses["net"]
        optimizer.zero_grad()
        loss.backward()
        if bool(loss.isfinite()):  # waits, as a training does
            optimizer.step()

    return step


def steps(
    batches: Batches, step: Callable[..., None], count: int, device: torch.device
) -> Iterator[tuple[float, Any, Any]]:
    """For each step, seconds until its batch was there, and events around what ran on the GPU."""
    size = batches.config.batch
    for first in range(0, count * size, size):
        start = time.perf_counter()
        batch, random = batches.of(first, size)
        seconds = time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None for _ in "ab")
        if begin is not None:
            begin.record()
        step(batch, first, random)
        if end is not None:
            end.record()
        yield seconds, begin, end


def measure(
    dataset: Dataset, found: Measured, step: Callable[..., None], count: int, batch: int, device: torch.device
) -> None:
    """One round of a case; its first batch, which nobody could read ahead, is no gap."""
    config = TrainConfig(batch=batch, total_nimg=count * batch, label_dropout=0.1)
    start = time.perf_counter()
    with closing(Batches(dataset, config, World(device=device))) as batches:
        taken = list(steps(batches, step, count, device))
        wait_for(device)
    found.rates.append(count * batch / (time.perf_counter() - start))
    found.host.extend(seconds for seconds, *_ in taken[1:])
    if device.type == "cuda":
        gaps = (last.elapsed_time(begin) for (*_, last), (_, begin, _) in pairwise(taken))
        found.gpu.extend(gap / 1e3 for gap in gaps)


def case(
    kind: str, ahead: bool, path: Path, memory: Dataset, device: torch.device
) -> tuple[Callable[[], None], Callable[[], Dataset]]:
    """What is done before a round, and the data set of the round."""
    if kind == "memory":
        return lambda: None, lambda: memory
    before = partial(give_back_pages, path) if kind == "disk" else lambda: None
    return before, lambda: replace(mapped(path).to(device), mapped=ahead)


CASES = [("memory", False), *((kind, ahead) for kind in ("mapped", "disk") for ahead in (False, True))]


def rows(options: argparse.Namespace, device: torch.device, path: Path) -> list[dict[str, Any]]:
    write_latents(path, options.count)
    own = {"patch": 8, "width": options.width, "depth": options.depth, "heads": options.width // 64}
    step = optimiser_step(options.network, own if options.network == "dit" else {}, device)
    memory = in_memory(path).to(device)
    found = {name: Measured() for name in CASES}

    def a_round(name: tuple[str, bool], number: int) -> None:
        before, dataset = case(*name, path, memory, device)
        before()
        kept = found[name] if number else Measured()
        measure(dataset(), kept, step, options.steps, options.batch, device)

    time_in_turn({name: partial(a_round, name) for name in CASES}, options.rounds)
    return [
        {
            **{"data": kind, "ahead": ahead, "images_per_second": statistics.median(one.rates)},
            **{"host_gap": statistics.median(one.host), "host_gap_longest": max(one.host)},
            "gpu_gap": statistics.median(one.gpu) if one.gpu else None,
        }
        for (kind, ahead), one in found.items()
    ]


def table(found: list[dict[str, Any]]) -> str:
    head = ["data", "read ahead", "images/s", "gap of the host, ms", "longest, ms", "gap of the GPU, ms"]
    lines = [
        [
            row["data"],
            "yes" if row["ahead"] else "no",
            f"{row['images_per_second']:.1f}",
            *(f"{1e3 * row[key]:.2f}" for key in ("host_gap", "host_gap_longest")),
            "-" if row["gpu_gap"] is None else f"{1e3 * row['gpu_gap']:.2f}",
        ]
        for row in found
    ]
    return markdown_table([head, *lines])


@true_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--network", default="dit", choices=sorted(NETWORKS))
    parser.add_argument("--width", type=int, default=128, help="of a dit (default 128)")
    parser.add_argument("--depth", type=int, default=2, help="of a dit (default 2)")
    parser.add_argument("--batch", type=int, default=64, help="images of a step (default 64)")
    parser.add_argument("--count", type=int, default=8192, help="latents in the file (default 8192: 0.5 GiB)")
    parser.add_argument("--steps", type=int, default=8, help="of a round (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="that are timed (default 5)")
    parser.add_argument("--folder", type=Path, help="where the file is written (default: that of tempfile)")
    parser.add_argument("--threads", type=int, default=1, help="of the loop on the CPU (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = rows(options, device, Path(folder) / "latents.npy")
    print(table(found))
    if options.json:
        command = " ".join(["python benchmarks/data_path.py", *sys.argv[1:]])
        content = {"command": command, "machine": describe_machine(device), "rows": found}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
