"""What a consistency step costs beside a diffusion step, in seconds and in activation memory, for each derivative mode.

    python benchmarks/train_step.py --json results.json

Networks of about 3M parameters on 32x32x3 images, batch 32, two threads. Every step is objective, backward pass and
optimiser. The steps take turns, so that another process on the machine slows all alike, and each row is a median.

Ratios are against the diffusion step of the same network in its best mode, eager or compiled. The limit is 4/3 for sCT
(forward, tangent, backward = 4 passes against 3) and 5/3 for sCD (and the teacher's forward pass).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trigflow.core import flow
from trigflow.core.precond import TrigFlowPrecond
from trigflow.dual import Dual, value_and_tangent
from trigflow.networks import NETWORKS
from trigflow.objectives.scm import consistency_tangent, normalize_tangent
from trigflow.system.machine import describe_machine

BATCH = 32
THREADS = 2

DATA_SHAPE = (3, 32, 32)
OPTIONS: dict[str, dict[str, Any]] = {
    "dit": {"patch": 4, "width": 192, "depth": 6, "heads": 3},
    "unet": {"channels": 48, "channel_mult": (1, 2, 2), "num_blocks": 2},
}
LIMITS = {"sct": 4 / 3, "scd": 5 / 3}
TARGETS = {"sct": 1.50, "scd": 1.85}
MODES = ("dual", "dual-compiled", "func", "func-compiled", "finite_difference", "two_pass")
EXACT = MODES[:4]

Step = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """One line of the table; ratio and activation_ratio are against the best diffusion row of the same network."""

    network: str
    step: str
    mode: str
    seconds: float
    activation_bytes: int
    ratio: float = 1.0
    activation_ratio: float = 1.0


# ----------------------------------------------------------------------------------------------------------------------
# The steps: each returns its loss.


def make_precond(name: str) -> TrigFlowPrecond:
    """A network whose last layers are not zero, as after some training."""
    torch.manual_seed(0)
    net = TrigFlowPrecond(NETWORKS[name](DATA_SHAPE, **OPTIONS[name]))
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return net


def two_pass(function: Any, primals: Any, tangents: Any) -> Dual:
    """The derivative as most codebases take it: a forward pass with a graph, then torch.func.jvp without one."""
    value = function(*primals)
    with torch.no_grad():
        return Dual(value, value_and_tangent(function, primals, tangents, mode="func").tangent)


@functools.cache
def derivative_of(mode: str) -> Callable[..., Dual]:
    """One function for a mode, so that sCT and sCD share what is compiled."""
    if mode == "two_pass":
        return two_pass
    name, _, compiled = mode.partition("-")

    def derivative(function: Any, primals: Any, tangents: Any) -> Dual:
        return value_and_tangent(function, primals, tangents, mode=name)

    return torch.compile(derivative, dynamic=False) if compiled else derivative


def diffusion_step(name: str, compiled: bool) -> tuple[TrigFlowPrecond, Step]:
    net = make_precond(name)
    forward = torch.compile(net, dynamic=False) if compiled else net

    def step() -> Tensor:
        x_0, z, t = inputs()
        error = net.sigma_data * forward(flow.interpolate(x_0, z, t), t) - flow.velocity_target(x_0, z, t)
        return error.square().mean()

    return net, step


def consistency_step(name: str, step_name: str, mode: str) -> tuple[TrigFlowPrecond, Step]:
    net, teacher = make_precond(name), make_precond(name).requires_grad_(False)
    derivative = derivative_of(mode)
    evaluate = torch.compile(teacher, dynamic=False) if mode.endswith("compiled") else teacher

    def step() -> Tensor:
        x_0, z, t = inputs()
        x_t = flow.interpolate(x_0, z, t)
        with torch.no_grad():
            dx_dt = (
                flow.velocity_target(x_0, z, t) if step_name == "sct" else net.sigma_data * evaluate(x_t, t)
            )
        scale = t.cos() * t.sin()
        output = derivative(net, (x_t, t), (flow.expand(scale, x_t) * dx_dt, scale))
        F = output.value.detach()
        g = normalize_tangent(consistency_tangent(x_t, t, F, output.tangent, dx_dt, net.sigma_data), "rms")
        return (output.value - F - g).square().mean()

    return net, step


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_0, z = 0.5 * torch.randn(2, BATCH, *DATA_SHAPE, generator=generator)
    return x_0, z, torch.rand(BATCH, generator=generator) * 1.4 + 0.1


# ----------------------------------------------------------------------------------------------------------------------
# Measuring.


def activation_bytes(net: nn.Module, step: Step) -> int:
    """Bytes that autograd keeps for the backward pass: each storage once, parameters and buffers left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        plain = tensor
        while torch._C._functorch.is_functorch_wrapped_tensor(plain):
            plain = torch._C._functorch.get_unwrapped(plain)
        if not plain._is_zerotensor():
            storage = plain.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = step()
    del loss
    return sum(storages.values())


def train_step(step: Step, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step().backward()
    optimizer.step()
    optimizer.zero_grad()
    return time.perf_counter() - start


def measure(name: str, rounds: int, modes: tuple[str, ...]) -> list[Row]:
    """All rows of one network, their steps taking turns."""
    built = {("diffusion", kind): diffusion_step(name, kind == "compiled") for kind in ("eager", "compiled")}
    for step_name in LIMITS:
        built |= {(step_name, mode): consistency_step(name, step_name, mode) for mode in modes}
    optimizers = {
        key: torch.optim.Adam(net.parameters(), lr=1e-5, fused=True) for key, (net, _) in built.items()
    }
    memory = {}
    for key, (net, step) in built.items():
        start = time.perf_counter()
        train_step(step, optimizers[key])
        memory[key] = activation_bytes(net, step)
        print(f"  {name} {key[0]} {key[1]}: ready after {time.perf_counter() - start:.0f} s", flush=True)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in built}
    for _ in range(rounds):
        for key, (_, step) in built.items():
            seconds[key].append(train_step(step, optimizers[key]))
    return with_ratios([Row(name, *key, statistics.median(seconds[key]), memory[key]) for key in built])


def with_ratios(rows: list[Row]) -> list[Row]:
    best = min((row for row in rows if row.step == "diffusion"), key=lambda row: row.seconds)
    return [
        replace(
            row,
            ratio=row.seconds / best.seconds,
            activation_ratio=row.activation_bytes / best.activation_bytes,
        )
        for row in rows
    ]


# ----------------------------------------------------------------------------------------------------------------------
# Telling.


def table(rows: list[Row]) -> str:
    lines = [
        "| network | step | mode | seconds | ratio | limit | activations |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = f"{LIMITS[row.step]:.2f}" if row.step in LIMITS else "1.00"
        lines.append(
            f"| {row.network} | {row.step} | {row.mode} | {row.seconds:.3f} | {row.ratio:.2f} | {limit} |"
            f" {row.activation_ratio:.2f} |"
        )
    return "\n".join(lines)


def verdicts(rows: list[Row]) -> list[str]:
    """The best exact mode of each network and step against its target."""
    lines = []
    for network in dict.fromkeys(row.network for row in rows):
        for step, target in TARGETS.items():
            exact = [row for row in rows if (row.network, row.step) == (network, step) and row.mode in EXACT]
            best = min(exact, key=lambda row: row.ratio)
            met = best.ratio <= target and best.activation_ratio <= 1.10
            lines.append(
                f"{network} {step}: {best.mode} {best.ratio:.2f}x (target {target:.2f}x, limit {LIMITS[step]:.2f}x),"
                f" activations {best.activation_ratio:.2f}x (target 1.10x): {'met' if met else 'MISSED'}"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=9, help="steps of each kind that are timed (default 9)")
    parser.add_argument("--networks", nargs="+", default=list(OPTIONS), choices=list(OPTIONS))
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if os.getloadavg()[0] > 0.5:
        print(f"load {os.getloadavg()[0]:.1f}: other work on this machine will raise the ratios", flush=True)
    rows: list[Row] = []
    for name in options.networks:
        count = sum(parameter.numel() for parameter in make_precond(name).network.parameters())
        print(f"{name}: {count / 1e6:.2f}M parameters", flush=True)
        rows += measure(name, options.rounds, tuple(options.modes))
        torch.compiler.reset()
    print(table(rows), *verdicts(rows), sep="\n")
    if options.json:
        machine = describe_machine("cpu")
        content = {"command": "make bench", "machine": machine, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
