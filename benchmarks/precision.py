"""What half precision costs: the errors of value, tangent and gradient beside float64, on each kind of network.

    python benchmarks/precision.py --json results/precision.json
    python benchmarks/precision.py --device cuda

A pass of consistency training, products in each precision of `train.precision`: the value F, the tangent g of all
images, and the gradient of the loss, which is scaled as in training. An error is the norm of the difference
over the norm of float64's, which has the same weights. Networks of the table have random weights (what starts at zero
is drawn, too) and see noise; the shipped students see samples of their own, and their teachers' velocities.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trigflow import load
from trigflow.core import flow
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.time_distributions import lognormal
from trigflow.dual import value_and_tangent
from trigflow.evaluation.page import markdown_table
from trigflow.networks import NETWORKS
from trigflow.objectives.scm import consistency_tangent, normalize_tangent
from trigflow.system.devices import (
    PRECISIONS,
    Precision,
    products_in,
    resolve_device,
    true_float32,
    wait_for,
)
from trigflow.system.machine import describe_machine
from trigflow.training.loss_scale import START

# Each network of the table, small.
SMALL: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "ddpmpp": ((3, 16, 16), {"channels": 32, "channel_mult": (1, 2), "num_blocks": 2}),
    "dit": ((3, 16, 16), {"width": 128, "depth": 4, "heads": 4}),
    "edm2": (
        (3, 16, 16),
        {"channels": 32, "channel_mult": (1, 2), "num_blocks": 2, "attention_levels": (1,)},
    ),
    "mlp": ((1, 8, 8), {"width": 256}),
    "unet": ((3, 16, 16), {"channels": 32, "attention_levels": (1,)}),
}
SHIPPED = ("digits", "mnist")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """A network and where on its paths it is looked at.

    Args:
        net: the network, in float32.
        x_t: noisy samples, (B, ...) float32.
        t: times, (B,) float32.
        cond: conditions.
        velocity: dx_t/dt of x_t and t, (B, ...) of their type.
    """

    net: TrigFlowPrecond
    x_t: Tensor
    t: Tensor
    cond: dict[str, Tensor]
    velocity: Callable[[Tensor, Tensor], Tensor]


def passes(case: Case, precision: Precision, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Value, tangent and gradient as a training step has them, products in a precision, all else in the dtype."""
    net, x_t, t = copy.deepcopy(case.net).to(dtype), case.x_t.to(dtype), case.t.to(dtype)
    with products_in(precision, x_t.device):
        dx_dt = case.velocity(x_t, t)
        scale = t.cos() * t.sin()
        directions = (flow.expand(scale, x_t) * dx_dt, scale)
        output = value_and_tangent(net, (x_t, t), directions, cond=case.cond)
        F = output.value.detach()
        g = consistency_tangent(x_t, t, F, output.tangent, dx_dt, net.sigma_data)
        loss = (output.value - F - normalize_tangent(g, "rms")).square().mean()
    return {"value": F, "tangent": g, "gradient": gradient(loss, net)}


def gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """With the loss scaled as training does it: less and less, until nothing overflows."""
    parameters, scale = [p for p in net.parameters() if p.requires_grad], 2 * START
    found = torch.tensor([torch.inf])
    while scale > 1 and not found.isfinite().all():
        scale /= 2
        parts = torch.autograd.grad(loss * scale, parameters, retain_graph=True, allow_unused=True)
        found = torch.cat([part.flatten() / scale for part in parts if part is not None])
    return found


def exactly(case: Case) -> dict[str, Tensor]:
    """The same in float64."""
    return passes(case, "float32", torch.float64)


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Of each of the three, the norm of the difference over the norm."""
    return {name: ((found[name] - exact[name]).norm() / exact[name].norm()).item() for name in exact}


def times(batch: int) -> Tensor:
    """Evenly over the quantiles of the paper's time distribution (P_mean -1, P_std 1.4), (B,)."""
    u = (torch.arange(batch, dtype=torch.float64) + 0.5) / batch
    return lognormal(u, P_mean=-1.0, P_std=1.4, sigma_data=0.5).float()


def on(case: Case, device: torch.device) -> Case:
    """The same on a device; its velocity is taken where it was."""

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return case.velocity(x_t.to(case.x_t.device), t.to(case.x_t.device)).to(device)

    cond = {name: value.to(device) for name, value in case.cond.items()}
    return Case(copy.deepcopy(case.net).to(device), case.x_t.to(device), case.t.to(device), cond, velocity)


def of_random_weights(name: str, batch: int) -> Case:
    """A network of the table."""
    torch.manual_seed(0)
    shape, options = SMALL[name]
    network = NETWORKS[name](shape, **options)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(
                parameter, std=1 / math.sqrt(math.prod(parameter.shape[1:]) if parameter.ndim else 1)
            )
    x_0, z, t = torch.randn(batch, *shape) / 2, torch.randn(batch, *shape) / 2, times(batch)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        return flow.velocity_target(x_0.to(x_t.dtype), z.to(x_t.dtype), t)

    return Case(TrigFlowPrecond(network), flow.interpolate(x_0, z, t), t, {}, velocity)


def of_a_shipped_student(name: str, batch: int) -> Case:
    """A student beside its teacher, on samples of its own."""
    student, teacher = load(name, CPU), load(f"{name}-teacher", CPU)
    labels = student.labels(batch)
    assert labels is not None
    x_0, t = student.codec.encode(student.sample(batch)), times(batch)
    z = student.precond.sigma_data * torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    guided = teacher.velocity(teacher.card.sampling.guidance_scale)

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        teacher.precond.to(x_t.dtype)
        with torch.no_grad():
            return guided(x_t, t, labels=labels)

    net = student.precond.requires_grad_(True)
    scale = torch.full((batch,), teacher.card.sampling.guidance_scale)  # for a student that is told it
    cond = {"labels": labels} | ({"guidance": scale} if net.guidance_input else {})
    return Case(net, flow.interpolate(x_0, z, t), t, cond, velocity)


def seconds(case: Case, rounds: int) -> dict[Precision, float]:
    """Of a pass, the least of the rounds; the precisions take turns, so that other work slows all alike."""
    found: dict[Precision, list[float]] = {precision: [] for precision in PRECISIONS}
    for _ in range(rounds):
        for precision in PRECISIONS:
            start = time.perf_counter()
            passes(case, precision)
            wait_for(case.x_t.device)
            found[precision].append(time.perf_counter() - start)
    return {precision: min(times) for precision, times in found.items()}


def measure(name: str, batch: int, rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """The rows of one network; float64 is that of the CPU."""
    case = of_a_shipped_student(name, batch) if name in SHIPPED else of_random_weights(name, batch)
    exact, case = exactly(case), on(case, device)
    times = seconds(case, rounds)
    size = sum(parameter.numel() for parameter in case.net.network.parameters())
    return [
        {"network": name, "parameters": size, "precision": precision}
        | errors({part: found.cpu() for part, found in passes(case, precision).items()}, exact)
        | {"seconds": times[precision]}
        for precision in PRECISIONS
    ]


def table(rows: list[dict[str, Any]]) -> str:
    head = ["network", "parameters", "precision", "value", "tangent", "gradient", "seconds"]
    lines = [
        [row["network"], f"{row['parameters']:,}", row["precision"]]
        + [f"{row[key]:.1e}" for key in ("value", "tangent", "gradient")]
        + [f"{row['seconds']:.3f}"]
        for row in rows
    ]
    return markdown_table([head, *lines])


@true_float32()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--batch", type=int, default=32, help="images in a pass (default 32)")
    parser.add_argument("--rounds", type=int, default=3, help="passes that are timed (default 3)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = resolve_device(options.device)
    rows = [
        row for name in (*SMALL, *SHIPPED) for row in measure(name, options.batch, options.rounds, device)
    ]
    print(table(rows))
    if options.json:
        command = " ".join(["python benchmarks/precision.py", *sys.argv[1:]])
        content = {"command": command, "machine": describe_machine(device), "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
