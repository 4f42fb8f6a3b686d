"""A network that is trained, with all that belongs to it: optimiser, loss scale, averages, and their state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trigflow.checkpoint import below, load_average, load_tensors, prefixed
from trigflow.ema import EMA, HalfLifeEMA, PowerEMA
from trigflow.errors import UserError
from trigflow.loss_scale import LossScale
from trigflow.optim import (
    learning_rate,
    load_optimizer_tensors,
    new_optimizer,
    optimizer_tensors,
    set_learning_rate,
)
from trigflow.precond import TrigFlowPrecond
from trigflow.progress import gradient_norm
from trigflow.recipe import EMAConfig, Recipe


@dataclass
class Trained:
    """A network that is trained, with all that belongs to it.

    Attributes:
        name: in the objective.
        net: the network.
        parameters: those that are trained.
        optimizer: of the parameters.
        loss_scale: of its loss; each network has its own, as losses differ in size and in their steps.
        rate: the learning rate of the step that starts at so many images.
        update_period: it is updated at every update_period-th step.
        ema: averages of its weights.
    """

    name: str
    net: TrigFlowPrecond
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    rate: Callable[[int], float]
    update_period: int
    ema: EMA

    def backward(self, loss: Tensor, retain_graph: bool) -> None:
        """Adds the gradients of a loss; those of this network's parameters alone, also where losses share a graph."""
        scaled = self.loss_scale.scaled(loss)
        scaled.backward(inputs=self.parameters, retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def gradient_norm(self) -> Tensor:
        """Of all parameters together, a scalar."""
        return gradient_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, nimg: int) -> None:
        """One update of the weights, at the learning rate of the step that starts at nimg images."""
        set_learning_rate(self.optimizer, self.rate(nimg))
        self.optimizer.step()
        self.net.normalize_weights()

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimiser and averages, for a checkpoint."""
        tensors = prefixed(f"net/{self.name}/", self.net.state_dict())
        tensors |= prefixed(f"optimizer/{self.name}/", optimizer_tensors(self.optimizer))
        for ema_name, average in zip(self.ema.names, self.ema.averages, strict=True):
            tensors |= prefixed(f"ema/{self.name}/{ema_name}/", average)
        return tensors

    def prefixes(self) -> list[str]:
        """With which the names of its tensors begin."""
        averages = [f"ema/{self.name}/{ema_name}/" for ema_name in self.ema.names]
        return [f"net/{self.name}/", f"optimizer/{self.name}/", *averages]

    def take_up(self, tensors: dict[str, Tensor], scale: Any, steps: int) -> None:
        """The inverse of tensors and of loss_scale.state().

        Args:
            tensors: of a checkpoint.
            scale: the state of the loss scale.
            steps: of the loop until then.

        Raises:
            UserError: they are those of another network, optimiser, average or precision.
        """
        self.loss_scale.load(scale)
        turns = math.ceil(steps / self.update_period)
        if turns > self.loss_scale.skipped and not below(tensors, f"optimizer/{self.name}/"):
            raise UserError(f"it has no state of the optimiser of '{self.name}'")
        load_tensors(self.net, below(tensors, f"net/{self.name}/"), "it")
        load_optimizer_tensors(self.optimizer, below(tensors, f"optimizer/{self.name}/"))
        for ema_name, average in zip(self.ema.names, self.ema.averages, strict=True):
            load_average(average, below(tensors, f"ema/{self.name}/{ema_name}/"), "it")


def new_trained(name: str, net: TrigFlowPrecond, recipe: Recipe, device: torch.device) -> Trained:
    """A network at the start of its training, as the recipe says."""
    net.train()
    net.normalize_weights()  # another model's average is shorter than the weights it averages
    parameters: list[Tensor] = [parameter for parameter in net.parameters() if parameter.requires_grad]
    config = recipe.optimizer_of(name)
    return Trained(
        name,
        net,
        parameters,
        new_optimizer(config, parameters),
        LossScale(device, on=recipe.train.precision == "float16"),
        learning_rate(config, recipe.train.batch, recipe.train.total_nimg),
        config.update_period,
        new_ema(recipe.ema, net),
    )


def new_ema(config: EMAConfig, net: TrigFlowPrecond) -> EMA:
    """The average that a recipe asks for."""
    if config.kind == "power":
        return PowerEMA(net, config.ema_std)
    return HalfLifeEMA(net, config.halflife_nimg, config.rampup_ratio)
