"""A trained network with its optimiser, loss scale, averages, and their state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trigflow.core.precond import TrigFlowPrecond
from trigflow.recipes.schema import EMAConfig, Recipe
from trigflow.system.distributed import SINGLE_PROCESS, World, is_sharded, own_part
from trigflow.system.errors import UserError
from trigflow.system.tensors import below, load_average, load_tensors, prefixed
from trigflow.training.ema import EMA, half_life_ema, power_ema
from trigflow.training.loss_scale import LossScale
from trigflow.training.optimisers import (
    learning_rate,
    load_optimizer_tensors,
    new_optimizer,
    optimizer_tensors,
)
from trigflow.training.progress import gradient_norm
from trigflow.training.sharding import average_gradients, gathered_weights, norm_of_parts


@dataclass
class Trained:
    """A network in training, with its optimiser, loss scale and averages.

    Attributes:
        name: its name in the objective.
        net: the network.
        weights: its trained parameters, possibly sharded.
        parameters: the same; with several processes, this process's shards of them, in the same memory. The optimiser
            works elementwise on these, without communication.
        optimizer: the optimiser of the parameters.
        loss_scale: scaling of its loss; each network has its own, since losses differ in magnitude and schedule.
        rate: the learning rate as a function of nimg at the start of the step.
        update_period: the network is updated in every update_period-th step.
        ema: averages of its weights.
        world: the processes of the run.
        leaves: of a sharded network, the gathered weights (`sharding.gathered_weights`); None: a loss has gradients of
            this network only.
    """

    name: str
    net: TrigFlowPrecond
    weights: list[Tensor]
    parameters: list[Tensor]
    optimizer: torch.optim.Optimizer
    loss_scale: LossScale
    rate: Callable[[int], float]
    update_period: int
    ema: EMA
    world: World = SINGLE_PROCESS
    leaves: dict[int, Tensor] | None = None

    def zero_grad(self) -> None:
        """Clears the gradients, before the first backward pass of a step."""
        for weight, parameter in zip(self.weights, self.parameters, strict=True):
            weight.grad = parameter.grad = None

    def backward(self, loss: Tensor, retain_graph: bool) -> None:
        """Adds the gradients of a loss with respect to this network's parameters only, also if losses share a graph."""
        scaled = self.loss_scale.scaled(loss)
        if self.world.is_single:
            scaled.backward(inputs=self.parameters, retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        elif self.leaves is None:  # what full sharding gathers for a pass is in the graph, not the parameters
            scaled.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        else:
            scaled.backward(inputs=[*self.leaves.values()], retain_graph=retain_graph)  # type: ignore[no-untyped-call]

    def take_gradients(self) -> None:
        """Passes this process's shards of the gradients to the optimiser, after the last backward pass of a step."""
        if self.world.is_single:
            return
        pairs = [pair for pair in zip(self.weights, self.parameters, strict=True) if pair[0].grad is not None]
        average_gradients([weight for weight, _ in pairs if not is_sharded(weight)], self.world)
        for weight, parameter in pairs:
            assert weight.grad is not None
            parameter.grad = own_part(weight.grad)

    def unscale(self) -> bool:
        """Divides the gradients by the loss scale; returns whether they have overflowed."""
        return self.loss_scale.unscale(self.optimizer, self.world)

    def gradient_norm(self) -> Tensor:
        """The norm of the gradients of all parameters together, a scalar."""
        pairs = [pair for pair in zip(self.weights, self.parameters, strict=True) if pair[1].grad is not None]
        if self.world.is_single:
            return gradient_norm([p.grad for _, p in pairs if p.grad is not None])
        return norm_of_parts(pairs, self.world)

    def step(self, nimg: int) -> None:
        """Updates the weights, with the learning rate of the step that starts at nimg images."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate(nimg)
        self.optimizer.step()
        self.net.normalize_weights()

    @contextmanager
    def averaged(self) -> Iterator[TrigFlowPrecond]:
        """The network with its first average as weights, in evaluation mode; on exit its own weights are restored."""
        tensors = {name: own_part(tensor) for name, tensor in self.net.state_dict().items()}
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(own_part(self.ema.averages[0][name]))
        try:
            yield self.net.eval()
        finally:
            with torch.no_grad():
                for name, tensor in tensors.items():
                    tensor.copy_(own[name])
            self.net.train()

    # State

    def tensors(self) -> dict[str, Tensor]:
        """Weights, optimiser and averages, for a checkpoint."""
        tensors = prefixed(f"net/{self.name}/", self.net.state_dict())
        tensors |= prefixed(f"optimizer/{self.name}/", optimizer_tensors(self.optimizer, self.weights))
        for ema_name, average in zip(self.ema.names, self.ema.averages, strict=True):
            tensors |= prefixed(f"ema/{self.name}/{ema_name}/", average)
        return tensors

    def prefixes(self) -> list[str]:
        """The prefixes of the names of its tensors."""
        averages = [f"ema/{self.name}/{ema_name}/" for ema_name in self.ema.names]
        return [f"net/{self.name}/", f"optimizer/{self.name}/", *averages]

    def take_up(self, tensors: dict[str, Tensor], scale: Any, steps: int) -> None:
        """Restores the state from tensors() and loss_scale.state().

        Args:
            tensors: tensors of a checkpoint.
            scale: the state of the loss scale.
            steps: number of steps of the loop before the checkpoint.

        Raises:
            UserError: the state is that of another network, optimiser, average or precision.
        """
        self.loss_scale.load(scale)
        turns = math.ceil(steps / self.update_period)
        if turns > self.loss_scale.skipped and not below(tensors, f"optimizer/{self.name}/"):
            raise UserError(f"it has no state of the optimiser of '{self.name}'")
        load_tensors(self.net, below(tensors, f"net/{self.name}/"), "it")
        load_optimizer_tensors(self.optimizer, below(tensors, f"optimizer/{self.name}/"), self.weights)
        for ema_name, average in zip(self.ema.names, self.ema.averages, strict=True):
            load_average(average, below(tensors, f"ema/{self.name}/{ema_name}/"), "it")


def new_trained(
    name: str,
    net: TrigFlowPrecond,
    recipe: Recipe,
    device: torch.device,
    world: World = SINGLE_PROCESS,
    among_others: bool = False,
) -> Trained:
    """A network at the start of its training, with the recipe's optimiser and averages.

    Args:
        name: its name in the objective.
        net: the network; with several processes, sharded over them.
        recipe: of the run.
        device: for training.
        world: the processes.
        among_others: the objective trains several networks, on whose weights its loss may depend, too.
    """
    net.train()
    net.normalize_weights()  # another model's average is shorter than the weights it averages
    weights: list[Tensor] = [parameter for parameter in net.parameters() if parameter.requires_grad]
    parameters = weights
    if not world.is_single:
        parameters = [nn.Parameter(own_part(weight).detach()) for weight in weights]
    config = recipe.optimizer_of(name)
    return Trained(
        name,
        net,
        weights,
        parameters,
        new_optimizer(config, parameters),
        LossScale(device, on=recipe.train.precision == "float16"),
        learning_rate(config, recipe.train.batch, recipe.train.total_nimg),
        config.update_period,
        new_ema(recipe.ema, net),
        world,
        gathered_weights(net) if among_others and not world.is_single else None,
    )


def new_ema(config: EMAConfig, net: TrigFlowPrecond) -> EMA:
    """The averages of the recipe's `ema` setting."""
    if config.kind == "power":
        return power_ema(net, config.ema_std)
    return half_life_ema(net, config.halflife_nimg, config.rampup_ratio)
