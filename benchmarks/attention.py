"""Attention's value, tangent and backward pass over the number of tokens: seconds and peak memory, each way.

    python benchmarks/attention.py --json results/attention.json
    python benchmarks/attention.py --device cuda --dtype bfloat16 --heads 16 --batch 8

plain (on a GPU): no tangent. func: torch.func.jvp with the written-out attention, whose graph keeps the N x N matrices.
matrix: value by torch's fused kernel, tangent from N x N matrices that are not kept. blocks: the same value, tangent by
blocks in torch, as the dual mode takes it for more than 256 tokens. kernel (on a GPU): the same by one Triton kernel.

Heads of 64 channels. The peak is that above the inputs: of a fresh process on the CPU (Linux only), of torch's
allocator on a GPU.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual import attention, value_and_tangent
from trigflow.evaluation.page import markdown_table
from trigflow.system.devices import resolve_device, true_float32, wait_for
from trigflow.system.machine import describe_machine

SIZES = (256, 512, 1024, 2048, 4096, 8192)
WAYS = {"cpu": ("func", "matrix", "blocks"), "cuda": ("plain", "func", "matrix", "blocks", "kernel")}
HEAD = 64


@dataclass(frozen=True)
class Setting:
    """What the tensors have in common."""

    device: torch.device
    dtype: torch.dtype = torch.float32
    batch: int = 1
    heads: int = 1
    threads: int = 1

    def inputs(self, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
        """Queries, keys and values, and their directions."""
        shape = (self.batch, self.heads, tokens, HEAD)
        kind: Any = {"device": self.device, "dtype": self.dtype}
        qkv = [torch.randn(shape, requires_grad=True, **kind) for _ in range(3)]
        return qkv, [torch.randn(shape, **kind) for _ in range(3)]


def step(way: str, qkv: list[Tensor], directions: list[Tensor]) -> None:
    """Value, tangent and backward pass."""
    if way == "plain":
        F.scaled_dot_product_attention(*qkv).sum().backward()
        return
    attention.FULL_MATRIX = 0 if way in ("blocks", "kernel") else sys.maxsize
    attention.FULL_ELEMENTS = sys.maxsize
    os.environ["TRIGFLOW_TRITON"] = "1" if way == "kernel" else "0"
    mode = "func" if way == "func" else "dual"
    output = value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(directions), mode=mode)
    output.value.sum().backward()


def memory(field: str) -> int:
    """Bytes of this process: VmRSS those it has, VmHWM the most that it has had since `forget_the_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_of_a_process(way: str, tokens: int, setting: Setting) -> int:
    """Of one step, above its inputs; to be run in a fresh process."""
    torch.set_num_threads(setting.threads)
    step(way, *setting.inputs(16))  # libraries are loaded
    qkv, directions = setting.inputs(tokens)
    forget_the_peak()
    before = memory("VmRSS")
    step(way, qkv, directions)
    return memory("VmHWM") - before


def peak_of_the_gpu(way: str, tokens: int, setting: Setting) -> int | None:
    """Of one step, above its inputs; None where it does not fit."""
    qkv, directions = setting.inputs(tokens)
    wait_for(setting.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    try:
        step(way, qkv, directions)
    except torch.cuda.OutOfMemoryError:
        return None
    return torch.cuda.max_memory_allocated(setting.device) - before


def seconds(tokens: int, rounds: int, setting: Setting, ways: list[str]) -> dict[str, float]:
    """Of each way, the least of the rounds; the ways take turns, so that other work slows all alike."""
    found: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        step(way, *setting.inputs(tokens if setting.device.type == "cuda" else 16))  # libraries, kernels
    for _ in range(rounds if tokens <= 2048 or setting.device.type == "cuda" else 1):
        for way in ways:
            qkv, directions = setting.inputs(tokens)
            wait_for(setting.device)
            start = time.perf_counter()
            step(way, qkv, directions)
            wait_for(setting.device)
            found[way].append(time.perf_counter() - start)
    return {way: min(times) for way, times in found.items()}


def measure(
    tokens: int, rounds: int, setting: Setting, peak: Callable[[str, int, Setting], int | None]
) -> list[dict[str, Any]]:
    """The rows of one number of tokens; ways that do not fit into a GPU's memory are left out."""
    peaks = {way: peak(way, tokens, setting) for way in WAYS[setting.device.type]}
    ways = [way for way, found in peaks.items() if found is not None]
    times = seconds(tokens, rounds, setting, ways)
    return [{"tokens": tokens, "way": way, "seconds": times[way], "peak_bytes": peaks[way]} for way in ways]


def table(rows: list[dict[str, Any]]) -> str:
    ways = list(dict.fromkeys(row["way"] for row in rows))
    head = ["tokens", *(f"{way}, ms" for way in ways), *(f"{way}, MiB" for way in ways)]
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        found = {row["way"]: row for row in rows if row["tokens"] == tokens}
        times = [f"{1000 * found[way]['seconds']:.3g}" if way in found else "-" for way in ways]
        peaks = [f"{found[way]['peak_bytes'] / 2**20:.1f}" if way in found else "-" for way in ways]
        lines.append([str(tokens), *times, *peaks])
    return markdown_table([head, *lines])


@true_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--rounds", type=int, default=3, help="steps that are timed, one beyond 2048 tokens (default 3)"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--device", default="cpu", choices=list(WAYS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--heads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    dtype = getattr(torch, options.dtype)
    setting = Setting(device, dtype, options.batch, options.heads, options.threads)
    rows = measured(options.tokens, options.rounds, setting)
    print(table(rows))
    if options.json:
        content = {
            "command": " ".join(["python benchmarks/attention.py", *sys.argv[1:]]),
            "machine": describe_machine(device),
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n")


def measured(sizes: list[int], rounds: int, setting: Setting) -> list[dict[str, Any]]:
    """All rows."""
    if setting.device.type == "cuda":
        return [row for tokens in sizes for row in measure(tokens, rounds, setting, peak_of_the_gpu)]
    context = multiprocessing.get_context("forkserver")  # imports once, forks a fresh process for each row
    context.set_forkserver_preload(
        ["torch", "trigflow.dual", "trigflow.system.machine", "trigflow.evaluation.page"]
    )
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:

        def peak(way: str, tokens: int, setting: Setting) -> int:
            return pool.submit(peak_of_a_process, way, tokens, setting).result()

        return [row for tokens in sizes for row in measure(tokens, rounds, setting, peak)]


if __name__ == "__main__":
    main()
