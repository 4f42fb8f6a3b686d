"""Attention's value, tangent and backward pass over the number of tokens: seconds and peak memory, three ways.

    python benchmarks/attention.py --json results/attention.json

func: torch.func.jvp with the written-out attention, whose graph keeps the N x N matrices. matrix: value by torch's
fused kernel, tangent from N x N matrices that are not kept. blocks: the same value, tangent by blocks, as the dual mode
takes it for more than 256 tokens.

One head of 64 channels, float32. The peak is what a fresh process needs above its inputs (Linux only).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trigflow.dual import attention, value_and_tangent
from trigflow.machine import describe_machine
from trigflow.page import markdown_table

SIZES = (256, 512, 1024, 2048, 4096, 8192)
WAYS = ("func", "matrix", "blocks")
HEAD = 64


def step(way: str, qkv: list[Tensor], directions: list[Tensor]) -> None:
    """Value, tangent and backward pass."""
    attention.FULL_MATRIX = 0 if way == "blocks" else sys.maxsize
    attention.FULL_ELEMENTS = sys.maxsize
    mode = "func" if way == "func" else "dual"
    output = value_and_tangent(F.scaled_dot_product_attention, tuple(qkv), tuple(directions), mode=mode)
    output.value.sum().backward()


def memory(field: str) -> int:
    """Bytes of this process: VmRSS those it has, VmHWM the most that it has had since `forget_the_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def inputs(tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Queries, keys and values, and their directions."""
    qkv = [torch.randn(1, 1, tokens, HEAD, requires_grad=True) for _ in range(3)]
    return qkv, [torch.randn(1, 1, tokens, HEAD) for _ in range(3)]


def peak_bytes(way: str, tokens: int, threads: int) -> int:
    """Of one step, above its inputs; to be run in a fresh process."""
    torch.set_num_threads(threads)
    step(way, *inputs(16))  # libraries are loaded
    qkv, directions = inputs(tokens)
    forget_the_peak()
    before = memory("VmRSS")
    step(way, qkv, directions)
    return memory("VmHWM") - before


def seconds(tokens: int, rounds: int) -> dict[str, float]:
    """Of each way, the least of the rounds; the ways take turns, so that other work slows all alike."""
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        step(way, *inputs(16))  # libraries are loaded
    for _ in range(rounds if tokens <= 2048 else 1):
        for way in WAYS:
            qkv, directions = inputs(tokens)
            start = time.perf_counter()
            step(way, qkv, directions)
            found[way].append(time.perf_counter() - start)
    return {way: min(times) for way, times in found.items()}


def measure(tokens: int, rounds: int, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """The rows of one number of tokens."""
    threads = torch.get_num_threads()
    peaks = {way: pool.submit(peak_bytes, way, tokens, threads).result() for way in WAYS}
    times = seconds(tokens, rounds)
    return [{"tokens": tokens, "way": way, "seconds": times[way], "peak_bytes": peaks[way]} for way in WAYS]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["tokens", *(f"{way}, ms" for way in WAYS), *(f"{way}, MiB" for way in WAYS)]
    lines = []
    for tokens in dict.fromkeys(row["tokens"] for row in rows):
        found = {row["way"]: row for row in rows if row["tokens"] == tokens}
        times = [f"{1000 * found[way]['seconds']:.1f}" for way in WAYS]
        peaks = [f"{found[way]['peak_bytes'] / 2**20:.1f}" for way in WAYS]
        lines.append([str(tokens), *times, *peaks])
    return markdown_table([head, *lines])


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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    context = multiprocessing.get_context("forkserver")  # imports once, forks a fresh process for each row
    context.set_forkserver_preload(["torch", "trigflow.dual", "trigflow.machine", "trigflow.page"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        rows = [row for tokens in options.tokens for row in measure(tokens, options.rounds, pool)]
    print(table(rows))
    if options.json:
        command = "python benchmarks/attention.py --json results/attention.json"
        content = {"command": command, "machine": describe_machine("cpu"), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
