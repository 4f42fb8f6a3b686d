"""A dry run of a training step on torch's fake tensors, which have shapes and no data: its memory over time, its FLOPs.

The objective, network, optimiser and averages of the recipe are run themselves: shapes, types, views and the graph are
those of a real step, storages are only counted. So the pass for value and tangent, the teacher's pass and autocast need
no formula of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trigflow.core.precond import TrigFlowPrecond
from trigflow.core.randomness import SampleRandom
from trigflow.evaluation.training_compute import pass_flops
from trigflow.models.card import ModelCard, card_of
from trigflow.models.storage import new_precond
from trigflow.networks import NETWORKS
from trigflow.networks.blocks import blocks, checkpoint_blocks
from trigflow.objectives import Batch, Objective, new_objective
from trigflow.objectives.cost import mean_forwards
from trigflow.objectives.networks import check_guidance_input, networks_of
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, look_up
from trigflow.system.devices import products_in
from trigflow.system.errors import UserError
from trigflow.tools.plan.tracker import Tracker
from trigflow.training.optimisers import new_optimizer, optimizer_tensors
from trigflow.training.progress import gradient_norm
from trigflow.training.trained import new_ema

# Two batch sizes separate the memory of an image from the rest. Not 1: strides of a dimension of one element are
# arbitrary, and some copies are left out.
BATCHES = (2, 4)


@dataclass(frozen=True)
class MemoryTimeline:
    """Bytes in use after each function of a step, beside weights, optimiser state, averages and the teacher.

    Args:
        batch: images of the pass.
        temporary: activations, tangents and intermediate results, after each function.
        gradients: of the weights, after each function, in a step that begins without any.
        activations: of `temporary`, those that are kept for the backward pass.
    """

    batch: int
    temporary: tuple[int, ...]
    gradients: tuple[int, ...]
    activations: int

    def peak(self, share: float = 1.0, accumulated: int | None = None) -> tuple[int, int]:
        """Bytes of `temporary` and of the gradients, when their sum is largest.

        Args:
            share: of the gradients that this GPU holds.
            accumulated: bytes of all gradients, for a pass that adds to those of an earlier one; None: the first pass.
        """
        if accumulated is not None:
            return max(self.temporary), int(accumulated * share)
        moments = zip(self.temporary, self.gradients, strict=True)
        return max(((temporary, int(grads * share)) for temporary, grads in moments), key=sum)


@dataclass(frozen=True)
class Footprint:
    """Memory, in bytes, and FLOPs of a training.

    Args:
        parameters: number of trained parameters.
        weights: of the trained networks, buffers included.
        teacher: weights of the teacher and of its guide.
        gradients: of all trained parameters.
        optimizer: its state.
        averages: exponential moving averages of the weights, and a target network.
        block: weights of the largest block of the network, which FSDP gathers at a time.
        forward_flops: of a forward pass on one image; a multiply-add is two.
        training_flops: of one image of training.
        timelines: of a step at the two BATCHES.
    """

    parameters: int
    weights: int
    teacher: int
    gradients: int
    optimizer: int
    averages: int
    block: int
    forward_flops: int
    training_flops: float
    timelines: tuple[MemoryTimeline, MemoryTimeline]

    def timeline(self, batch: int) -> MemoryTimeline:
        """Of a pass on so many images: linear in the batch, after each function."""
        one, two = self.timelines
        share = (batch - one.batch) / (two.batch - one.batch)
        activations = _between(one.activations, two.activations, share)
        if len(one.temporary) == len(two.temporary):
            temporary = tuple(
                _between(a, b, share) for a, b in zip(one.temporary, two.temporary, strict=True)
            )
            return MemoryTimeline(batch, temporary, one.gradients, activations)
        # Where the number of functions depends on the batch (attention's tangent in blocks) only the peaks can be
        # interpolated, and all gradients are assumed to exist at that moment.
        peak = _between(max(one.temporary), max(two.temporary), share)
        return MemoryTimeline(batch, (peak,), (max(one.gradients),), activations)


def _between(one: int, two: int, share: float) -> int:
    return round(one + (two - one) * share)


def dry_run_step(
    recipe: Recipe, data_shape: tuple[int, ...], num_classes: int, checkpointing: bool = False
) -> Footprint:
    """Builds the networks of a recipe on fake tensors and runs one training step, in eager mode.

    Args:
        recipe: of the training; a teacher and its guide are assumed to be as large as the network.
        data_shape: of one sample, (C, *size).
        num_classes: of the data; 0 without labels.
        checkpointing: activation checkpointing of the network's blocks.

    Raises:
        UserError: an unknown part, options that do not fit, or a network of the user's that reads values of tensors.
    """
    try:
        card = card_of(recipe, data_shape, num_classes, new_objective(recipe.objective).kind)
        return _footprint_of(recipe, card, checkpointing)
    except UserError:
        raise
    except Exception as error:  # any that code of the user's raises on tensors without data
        if ":" not in recipe.network.name + recipe.objective.name:
            raise
        raise UserError(
            f"'{recipe.network.name}' cannot be planned: it fails on tensors without data "
            f"({type(error).__name__}: {error})"
        ) from error


def _footprint_of(recipe: Recipe, card: ModelCard, checkpointing: bool) -> Footprint:
    options = {key: value for key, value in recipe.objective.options.items() if key != "compile"}
    objective = new_objective(Component(recipe.objective.name, options))
    # A module of the user's is imported here, where tensors have data.
    look_up(card.network.name, NETWORKS, "network")
    with FakeTensorMode(allow_non_fake_inputs=True):
        return _DryRun(recipe, objective, card).footprint(checkpointing)


class _ZeroVelocity(nn.Module):
    """In place of a closed form, which has no weights."""

    num_classes = 0

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def _new_teacher(card: ModelCard) -> TrigFlowPrecond:
    """A teacher or its guide: the same network, without the guidance scale as an input."""
    options = {key: value for key, value in card.network.options.items() if key != "guidance_input"}
    net = new_precond(replace(card, network=replace(card.network, options=options)))
    return net.eval().requires_grad_(False)


class _DryRun:
    """The networks of a recipe, their averages and a step of their training, on fake tensors."""

    def __init__(self, recipe: Recipe, objective: Objective, card: ModelCard) -> None:
        self.recipe, self.objective, self.card = recipe, objective, card
        teacher = None
        if objective.needs_teacher:
            teacher = _new_teacher(card) if recipe.teacher != "exact" else _ZeroVelocity()
        guide = _new_teacher(card) if recipe.guide is not None else None
        self.nets = networks_of(objective, lambda name: new_precond(card).train(), teacher, guide)
        self.trained: dict[str, TrigFlowPrecond] = {name: self.nets[name] for name in objective.trains}
        for net in self.trained.values():
            check_guidance_input(net, recipe.objective.name, objective.guidance_range)
        self.parameters = {
            name: [parameter for parameter in net.parameters() if parameter.requires_grad]
            for name, net in self.trained.items()
        }
        self.averages = {name: new_ema(recipe.ema, net) for name, net in self.trained.items()}

    @property
    def main(self) -> TrigFlowPrecond:
        """The network that becomes the model."""
        return self.trained[self.objective.trains[0]]

    def _inputs(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        labels = {"labels": torch.zeros(batch, dtype=torch.int64)} if self.card.num_classes else {}
        return torch.zeros(batch, *self.card.data_shape), labels

    def _forward_flops(self) -> int:
        """Of a pass on one image."""
        x, cond = self._inputs(1)
        if self.main.guidance_input:
            cond["guidance"] = torch.ones(1)
        return pass_flops(self.main, x, cond)

    def _step(self, batch: int) -> MemoryTimeline:
        """One pass and all of the step after it but the optimiser itself, which only writes in place."""
        temporary: list[int] = []
        gradients: list[int] = []
        made = [0]

        def watch(in_use: int) -> None:
            temporary.append(in_use - made[0])
            gradients.append(made[0])

        with Tracker(self._lasting(), watch) as tracker, self._gradients_counted(made):
            losses = self._losses(batch)
            activations = tracker.live
            names = list(losses)
            for name in names:
                losses[name].backward(inputs=self.parameters[name], retain_graph=name != names[-1])  # type: ignore[no-untyped-call]
            del losses
            self._finish(batch)
        for parameters in self.parameters.values():
            for parameter in parameters:
                parameter.grad = None
        return MemoryTimeline(batch, tuple(temporary), tuple(gradients), activations)

    def _lasting(self) -> list[Tensor]:
        """What is there before and after a step."""
        found = [tensor for net in self.nets.values() for tensor in (*net.parameters(), *net.buffers())]
        for ema in self.averages.values():
            found += [tensor for average in ema.averages for tensor in average.values()]
        return found

    def _losses(self, batch: int) -> dict[str, Tensor]:
        x_0, labels = self._inputs(batch)
        random = SampleRandom(self.recipe.train.seed, torch.arange(batch))
        with products_in(self.recipe.train.precision, torch.device("cpu")):
            return self.objective(self.nets, Batch(x_0, labels, self.recipe.train.batch), 0, random).losses

    @contextmanager
    def _gradients_counted(self, made: list[int]) -> Iterator[None]:
        """Keeps in made[0] the bytes of the gradients made so far."""

        def count(parameter: Tensor) -> None:
            made[0] += _bytes([cast(Tensor, parameter.grad)])

        handles = [
            parameter.register_post_accumulate_grad_hook(count)  # type: ignore[no-untyped-call]
            for parameters in self.parameters.values()
            for parameter in parameters
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _finish(self, batch: int) -> None:
        for name, net in self.trained.items():
            gradient_norm([p.grad for p in self.parameters[name] if p.grad is not None])
            net.normalize_weights()
            self.averages[name].update(net, batch, batch)

    def _optimizer_bytes(self) -> int:
        """Of its state after the first step."""
        total = 0
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer = new_optimizer(self.recipe.optimizer_of(name), parameters)
            optimizer.step()
            total += _bytes(optimizer_tensors(optimizer).values())
        return total

    def footprint(self, checkpointing: bool) -> Footprint:
        forward_flops = self._forward_flops()
        if checkpointing:
            for net in self.trained.values():
                checkpoint_blocks(net)
        one, two = (self._step(batch) for batch in BATCHES)
        weights = {name: _bytes(net.state_dict().values()) for name, net in self.nets.items()}
        parameters = [parameter for group in self.parameters.values() for parameter in group]
        averages = [tensors for ema in self.averages.values() for tensors in ema.averages]
        periods = self.recipe.update_periods(self.objective.trains)
        return Footprint(
            parameters=sum(parameter.numel() for parameter in parameters),
            weights=sum(weights[name] for name in self.trained),
            teacher=weights.get("teacher", 0) + weights.get("guide", 0),
            gradients=_bytes(parameters),
            optimizer=self._optimizer_bytes(),
            averages=sum(_bytes(tensors.values()) for tensors in averages) + weights.get("target", 0),
            block=max(_bytes(block.parameters()) for block in [*blocks(self.main)] or [self.main]),
            forward_flops=forward_flops,
            training_flops=(mean_forwards(self.objective, periods) + checkpointing) * forward_flops,
            timelines=(one, two),
        )


def _bytes(tensors: Any) -> int:
    """Of their storages, each counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
