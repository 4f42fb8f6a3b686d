"""Error of a student's flow map against the exact flow map, for data where that is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trigflow.core import flow
from trigflow.core.oracles import Oracle
from trigflow.core.randomness import SampleRandom
from trigflow.system.errors import UserError

# f(x_T, t): a student's x_0 (n, ...) for x_T (n, ...) at the times t (n,).
FlowMap = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FlowMapError:
    """Distance of a one-step student from the exact end of each path, over fixed noises.

    |f(x_T, t_max) - x_0(x_T)|_2 / sigma_data, where x_0(x_T) is the end of the oracle's PF-ODE path.

    Attributes:
        noises: x_T, (n, ...), of std sigma_data.
        t: t_max, (n,).
        ends: x_0(x_T), (n, ...).
        sigma_data: standard deviation of the data.
    """

    noises: Tensor
    t: Tensor
    ends: Tensor
    sigma_data: float

    @classmethod
    def measure(
        cls, oracle: Oracle, data_shape: tuple[int, ...], sigma_data: float, num: int, device: torch.device
    ) -> FlowMapError:
        """Solves the PF-ODE from the noises of `Model.sample(num, seed=0)`; all tensors are on `device`.

        Raises:
            UserError: num < 1.
        """
        if num < 1:
            raise UserError(f"a flow-map error needs 1 noise or more, not {num}")
        noises = sigma_data * SampleRandom(0, torch.arange(num)).normal("x_T", data_shape)
        t = torch.full((num,), flow.t_from_sigma(flow.SIGMA_MAX, sigma_data))
        ends = oracle.flow_map(noises, t)
        return cls(noises.to(device), t.to(device), ends.to(device), sigma_data)

    @torch.no_grad()
    def __call__(self, flow_map: FlowMap) -> dict[str, float]:
        """Median and root mean square over the noises: {"flow_map_median": ..., "flow_map_rms": ...}."""
        error = (flow_map(self.noises, self.t) - self.ends).cpu().double().flatten(1).norm(
            dim=1
        ) / self.sigma_data
        return {"flow_map_median": float(error.median()), "flow_map_rms": float(error.square().mean().sqrt())}
