"""A training step at the paper's size, beside its plan: images per second, TFLOP/s, and the peak of memory.

    python benchmarks/paper_step.py --device cuda imagenet512-s-teacher imagenet512-s-scd --batch 32

The steps are those of `trigflow train` in the recipe's own precision, on random data, with random weights for the
network, its teacher and all averages. Plain steps and steps with checkpointed blocks are told apart by --checkpointing.
TFLOP/s are of the arithmetic that `trigflow plan` counts: what a training needs, not what a GPU could do meanwhile.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch

from trigflow.core.precond import TrigFlowPrecond
from trigflow.data import Dataset
from trigflow.data.codecs import IdentityCodec
from trigflow.evaluation.page import markdown_table
from trigflow.models.card import ModelCard, card_of
from trigflow.models.storage import new_precond
from trigflow.networks.blocks import checkpoint_blocks
from trigflow.objectives import OBJECTIVES, Objective
from trigflow.objectives.networks import networks_of
from trigflow.recipes import get
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, build
from trigflow.system.devices import resolve_device, true_float32, wait_for
from trigflow.system.distributed import World
from trigflow.system.machine import describe_machine
from trigflow.tools.plan import Layout, dry_run_step, sample_shape
from trigflow.tools.plan.memory import need
from trigflow.training.assembly import RunParts
from trigflow.training.loop import Run
from trigflow.training.progress import Silent
from trigflow.training.run_folder import RunFolder

IMAGES = 64  # random ones, seen again and again


def new_net(card: ModelCard, device: torch.device, **options: Any) -> TrigFlowPrecond:
    """Of random weights, made where it is used."""
    network = Component(card.network.name, card.network.options | options)
    with device:
        return new_precond(ModelCard(**{**vars(card), "network": network})).to(device)


def new_parts(recipe: Recipe, device: torch.device) -> RunParts:
    """What `trigflow train` works with, on data and a teacher of noise."""
    data_shape, num_classes = sample_shape(recipe)
    objective: Objective = build(recipe.objective, OBJECTIVES, "objective")
    card = card_of(recipe, data_shape, num_classes, getattr(objective, "guidance_range", None))
    labels = torch.arange(IMAGES) % num_classes if num_classes else None
    data = torch.randn(IMAGES, *data_shape) / 2
    dataset = Dataset("noise", data, labels, num_classes, IdentityCodec()).to(device)
    teacher = None
    if objective.needs_teacher:
        own = {"guidance_input": False} if "guidance_input" in card.network.options else {}
        teacher = new_net(card, device, **own).eval().requires_grad_(False)
    nets = networks_of(objective, lambda: new_net(card, device), teacher)
    return RunParts(dataset, objective, nets, card)


def new_run(recipe: Recipe, device: torch.device, checkpointing: bool) -> Run:
    """A run without a folder: it takes steps, and writes nothing."""
    parts = new_parts(recipe, device)
    if checkpointing:
        checkpoint_blocks(parts.nets[parts.objective.trains[0]].network)
    run = Run(recipe, parts, cast(RunFolder, None), World(device=device))
    run.reporter = Silent()
    return run


def measured(recipe: Recipe, device: torch.device, rounds: int, checkpointing: bool) -> dict[str, Any]:
    """Seconds of each step after two, and the peak of torch's allocator (0 where the device has no count)."""
    run = new_run(recipe, device, checkpointing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(2 + rounds):
        wait_for(device)
        start = time.perf_counter()
        run._step()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"seconds": statistics.median(seconds[2:]), "all_seconds": seconds, "peak_bytes": peak}


def planned(recipe: Recipe, checkpointing: bool) -> dict[str, Any]:
    """What `trigflow plan` says of the same step on one GPU."""
    footprint = dry_run_step(recipe, *sample_shape(recipe), checkpointing)
    batch = recipe.train.batch
    size = recipe.train.microbatch or batch
    needed = need(footprint, Layout("one GPU", 1), size, batch // size)
    return {
        "parameters": footprint.parameters,
        "planned_bytes": needed.total,
        "flops": footprint.training_flops * batch,
    }


def measure(
    name: str, overrides: list[str], device: torch.device, rounds: int, checkpointing: bool
) -> dict[str, Any]:
    """The row of one recipe."""
    recipe = get(name, ["sampling.grid_nimg=0", *overrides])
    row = {
        "recipe": name,
        "precision": recipe.train.precision,
        "batch": recipe.train.batch,
        "checkpointing": checkpointing,
    }
    row |= measured(recipe, device, rounds, checkpointing)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return row | planned(recipe, checkpointing)


def table(rows: list[dict[str, Any]]) -> str:
    head = ["recipe", "parameters", "batch", "step", "images/s", "TFLOP/s", "peak, GiB", "planned, GiB"]
    lines = [
        [
            row["recipe"] + (" (checkpointing)" if row["checkpointing"] else ""),
            f"{row['parameters'] / 1e6:.0f} M",
            str(row["batch"]),
            f"{row['seconds']:.3f} s",
            f"{row['batch'] / row['seconds']:.1f}",
            f"{row['flops'] / row['seconds'] / 1e12:.1f}",
            f"{row['peak_bytes'] / 2**30:.2f}",
            f"{row['planned_bytes'] / 2**30:.2f}",
        ]
        for row in rows
    ]
    return markdown_table([head, *lines])


@true_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipes", nargs="+", metavar="RECIPE")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--batch", type=int, default=32, help="images of a step (default 32)")
    parser.add_argument("--rounds", type=int, default=5, help="steps that are timed, after two (default 5)")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="fields of the recipes")
    options = parser.parse_args()
    device = resolve_device(options.device)
    own = [f"train.batch={options.batch}", f"train.microbatch={options.batch}", *options.set]
    rows = []
    for name in options.recipes:
        rows.append(measure(name, own, device, options.rounds, options.checkpointing))
        print(json.dumps(rows[-1]), file=sys.stderr)
    print(table(rows))
    if options.json:
        content = {
            "command": " ".join(["python benchmarks/paper_step.py", *sys.argv[1:]]),
            "machine": describe_machine(device),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
