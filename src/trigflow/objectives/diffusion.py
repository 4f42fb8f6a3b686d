"""The TrigFlow diffusion loss, which trains a teacher (arXiv 2410.11081, equation 5 and Appendix D)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trigflow.core import flow
from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.core.time_distributions import TIME_DISTRIBUTIONS
from trigflow.networks.dropout import seeded_dropout
from trigflow.objectives.batch import Batch, LossOutput, Nets, Objective, check_batch
from trigflow.system.config import STRICT_KEYS
from trigflow.system.errors import one_of


def per_sample(x: Tensor) -> Tensor:
    """Mean over all but the first dimension, in float32 at least: (B, ...) -> (B,)."""
    return x.to(torch.promote_types(x.dtype, torch.float32)).flatten(1).mean(1)


def weighted(error: Tensor, logvar: Tensor | None) -> Tensor:
    """error * exp(-u) + u: its minimum over u is 1 + log(error), so that all t have equal weight; all (B,)."""
    return error if logvar is None else error * torch.exp(-logvar) + logvar


def diffusion_loss(
    net: TrigFlowPrecond, F: Tensor, x_0: Tensor, z: Tensor, t: Tensor, adaptive_weight: bool
) -> tuple[Tensor, Tensor]:
    """exp(-u(t)) / D |F - v_t/sigma_data|^2 + u(t) of each image, and its error without weight, both (B,).

    Args:
        net: the network, of which u(t) is taken.
        F: its output at x_t = cos(t) x_0 + sin(t) z, (B, ...).
        x_0, z, t: of x_t.
        adaptive_weight: if false, u = 0.
    """
    # Divided by sigma_data, so that F is compared with a target of unit variance.
    error = per_sample((F - flow.velocity_target(x_0, z, t) / net.sigma_data).square())
    return weighted(error, net.logvar(t) if adaptive_weight else None), error


# A name in TIME_DISTRIBUTIONS.
TimeDistribution = Annotated[
    str, AfterValidator(lambda name: one_of("time distribution", name, TIME_DISTRIBUTIONS))
]


def sample_times(
    time_distribution: str,
    P_mean: float,
    P_std: float,
    sigma_data: float,
    random: SampleRandom,
    stream: str = "t",
) -> Tensor:
    """Training times of a batch, (B,) float64 (float32 on a device without), from a stream of random numbers."""
    u = random.uniform(stream, dtype=torch.float32 if random.index.device.type == "mps" else torch.float64)
    return TIME_DISTRIBUTIONS[time_distribution](u, P_mean, P_std, sigma_data)


def _forward(net: TrigFlowPrecond, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
    F: Tensor = net(x_t, t, **cond)
    return F


# The compiled forward of each network, for as long as the network exists.
_COMPILED: WeakKeyDictionary[TrigFlowPrecond, Any] = WeakKeyDictionary()


def _compiled_forward(net: TrigFlowPrecond) -> Any:
    if net not in _COMPILED:
        _COMPILED[net] = torch.compile(_forward, dynamic=False)
    return _COMPILED[net]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Diffusion(Objective):
    """L = E exp(-u(t)) / D |F(x_t/sigma_data, t) - v_t/sigma_data|^2 + u(t), with v_t = cos(t) z - sin(t) x_0.

    Args:
        P_mean, P_std: log(sigma_data tan t) ~ N(P_mean, P_std^2).
        time_distribution: a name in TIME_DISTRIBUTIONS (`trigflow list time_distributions`).
        adaptive_weight: learn u(t); if false, u = 0.
        compile: run the network through torch.compile (one to two minutes at the first step).
    """

    is_consistency: ClassVar[bool] = False

    P_mean: float = Field(default=-0.8, ge=-20, le=20)
    P_std: float = Field(default=1.6, gt=0, le=20)
    time_distribution: TimeDistribution = "lognormal"
    adaptive_weight: bool = True
    compile: bool = False

    def __call__(self, nets: Nets, batch: Batch, nimg: int, random: SampleRandom) -> LossOutput:
        check_batch(batch, random)
        net, x_0 = nets["net"], batch.x_0
        t = sample_times(self.time_distribution, self.P_mean, self.P_std, net.sigma_data, random).to(
            x_0.dtype
        )
        z = net.sigma_data * random.normal("z", tuple(x_0.shape[1:]), x_0.dtype)
        x_t = flow.interpolate(x_0, z, t)
        forward = _compiled_forward(net) if self.compile else _forward
        with seeded_dropout(net, random):
            F = forward(net, x_t, t, **batch.cond)
        loss, error = diffusion_loss(net, F, x_0, z, t, self.adaptive_weight)
        logs = {"t": t, "loss": loss.detach(), "error": error.detach()}
        return LossOutput({"net": loss.mean()}, logs)
