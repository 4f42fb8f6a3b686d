"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from trigflow.recipes.schema import OptimizerConfig
from trigflow.system.config import build
from trigflow.system.distributed import own_part, sharded_like
from trigflow.system.errors import UserError, errors_reported

# A schedule gives the factor of the learning rate: (nimg before the step, images in a step, total_nimg) -> [0, 1].
Schedule = Callable[[int, int, int], float]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
_STATE = {"step", "exp_avg", "exp_avg_sq"}  # what Adam keeps for each parameter


def constant() -> Schedule:
    """No decay."""
    return lambda nimg, batch, total_nimg: 1.0


def inverse_sqrt(t_ref: Annotated[float, Field(gt=0)]) -> Schedule:
    """1 / sqrt(max(nimg / (t_ref batch), 1)): constant for t_ref steps, then falling (EDM2, arXiv 2312.02696)."""
    return lambda nimg, batch, total_nimg: 1 / math.sqrt(max(nimg / (t_ref * batch), 1))


def linear(final: UnitInterval = 0.0) -> Schedule:
    """Falls linearly to the share `final`."""
    return lambda nimg, batch, total_nimg: 1 - (1 - final) * min(nimg / total_nimg, 1)


def cosine(final: UnitInterval = 0.0) -> Schedule:
    """Falls along half a cosine to the share `final`."""

    def factor(nimg: int, batch: int, total_nimg: int) -> float:
        return final + (1 - final) * (1 + math.cos(math.pi * min(nimg / total_nimg, 1))) / 2

    return factor


SCHEDULES: dict[str, Callable[..., Schedule]] = {
    "constant": constant,
    "inverse_sqrt": inverse_sqrt,
    "linear": linear,
    "cosine": cosine,
}


def learning_rate(config: OptimizerConfig, batch: int, total_nimg: int) -> Callable[[int], float]:
    """The learning rate of the step that starts at nimg images: lr, times its schedule, times the linear ramp-up.

    Raises:
        UserError: unknown schedule or option, or one of the user's own that gives no factor.
    """
    schedule: Schedule = build(config.schedule, SCHEDULES, "optimizer.schedule")
    _check_schedule(schedule, config.schedule.name, batch, total_nimg)

    def rate(nimg: int) -> float:
        # The images of the step itself count, so that the first step is not lost on a rate of zero.
        rampup = min((nimg + batch) / config.rampup_nimg, 1.0) if config.rampup_nimg else 1.0
        return config.lr * schedule(nimg, batch, total_nimg) * rampup

    return rate


def _check_schedule(schedule: object, name: str, batch: int, total_nimg: int) -> None:
    needed = "a function (nimg, batch, total_nimg) -> factor of the learning rate is needed"
    if not callable(schedule):
        raise UserError(f"optimizer.schedule '{name}' returns {type(schedule).__name__}: {needed}")
    with errors_reported("optimizer.schedule", name, f"fails ({needed})"):
        float(schedule(0, batch, total_nimg))


class RAdam(torch.optim.Adam):
    """Rectified Adam (Liu et al., arXiv 1908.03265), built on the fused Adam, which is fast on many small tensors.

    The variance of the adaptive learning rate depends on the step t only, and the learning rate is multiplied by r_t:

        rho_inf = 2 / (1 - beta_2) - 1,    rho_t = rho_inf - 2 t beta_2^t / (1 - beta_2^t)
        r_t^2 = (rho_t - 4) (rho_t - 2) rho_inf / [(rho_inf - 4) (rho_inf - 2) rho_t]    where rho_t > 5,

    and in the first few steps the update is the bias-corrected momentum itself. t counts the steps of each parameter
    separately: a parameter that gets gradients later is rectified later.
    """

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient."""
        groups = self.param_groups
        try:
            for group in groups:
                for t, parameters in self._by_step(group["params"]).items():
                    self._update({**group, "params": parameters}, t)
        finally:
            self.param_groups = groups

    def _by_step(self, parameters: Iterable[Tensor]) -> dict[int, list[Tensor]]:
        """The parameters with a gradient, by the number of their next step."""
        active = [parameter for parameter in parameters if parameter.grad is not None]
        known = [self.state[parameter]["step"] for parameter in active if self.state[parameter]]
        # At once: on a GPU each one would wait for it.
        steps = iter(torch.stack(known).tolist() if known else [])
        found: dict[int, list[Tensor]] = {}
        for parameter in active:
            found.setdefault(int(next(steps)) + 1 if self.state[parameter] else 1, []).append(parameter)
        return found

    def _update(self, group: dict[str, Any], t: int) -> None:
        lr, (beta_1, beta_2) = group["lr"], group["betas"]
        rectification = rectify(t, beta_2)
        self.param_groups = [{**group, "lr": lr * rectification}]  # at 0 only the moments move
        super().step()
        if rectification == 0:
            momenta = [self.state[parameter]["exp_avg"] for parameter in group["params"]]
            with torch.no_grad():
                torch._foreach_add_(group["params"], momenta, alpha=-lr / (1 - beta_1**t))


def rectify(t: int, beta_2: float) -> float:
    """r_t of RAdam at step t >= 1; 0 while the variance of the adaptive learning rate is not defined."""
    rho_inf = 2 / (1 - beta_2) - 1
    rho = rho_inf - 2 * t * beta_2**t / (1 - beta_2**t)
    if rho <= 5:
        return 0.0
    return math.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))


def new_optimizer(config: OptimizerConfig, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """Adam or RAdam, without weight decay."""
    kind = torch.optim.Adam if config.name == "adam" else RAdam
    return kind(parameters, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: Sequence[Tensor] | None = None
) -> dict[str, Tensor]:
    """The optimiser's state as tensors by name, "number of the parameter/key".

    Args:
        optimizer: the optimiser of `weights`, or of this process's shards of them.
        weights: the network's parameters, possibly sharded; None: the optimiser's own.
    """
    weights = _parameters(optimizer) if weights is None else weights
    return {
        f"{number}/{key}": tensor if key == "step" else sharded_like(tensor, weights[number])
        for number, entry in optimizer.state_dict()["state"].items()
        for key, tensor in entry.items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], weights: Sequence[Tensor] | None = None
) -> None:
    """Restores the state from optimizer_tensors, for an optimiser of the same parameters.

    Raises:
        UserError: the tensors belong to other parameters or to another optimiser.
    """
    parameters = _parameters(optimizer) if weights is None else weights
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, key = name.partition("/")
        if not number.isdecimal() or int(number) >= len(parameters) or key not in _STATE:
            raise UserError(f"the optimiser has no tensor '{name}'")
        wanted = () if key == "step" else tuple(parameters[int(number)].shape)
        if tuple(tensor.shape) != wanted or not tensor.is_floating_point():
            found = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise UserError(f"the optimiser's '{name}' holds {found}, not numbers of shape {wanted}")
        whole = key == "step" or weights is None
        part = tensor if whole else own_part(sharded_like(tensor, parameters[int(number)]))
        state.setdefault(int(number), {})[key] = part
    for index, entry in state.items():
        if missing := _STATE - entry.keys():
            raise UserError(f"the optimiser misses '{index}/{min(missing)}'")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
