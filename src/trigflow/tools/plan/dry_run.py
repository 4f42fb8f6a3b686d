"""A training step on tensors without numbers: what it keeps in memory, moment by moment, and what it computes.

The very objective, network, optimiser and average of the recipe run under torch's fake tensors (on its device "meta"):
shapes, types, views and the graph are those of a real step, storages are only counted. So the single pass for value and
tangent, the teacher's pass and autocast need no model of their own.
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
from trigflow.objectives import OBJECTIVES, Batch, Objective
from trigflow.objectives.networks import check_guidance_input, networks_of
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, build, look_up
from trigflow.system.devices import products_in
from trigflow.system.errors import UserError
from trigflow.tools.plan.tracker import Tracker
from trigflow.training.optimisers import new_optimizer, optimizer_tensors
from trigflow.training.progress import gradient_norm
from trigflow.training.trained import new_ema

# Two batches tell what belongs to an image. Not 1: a dimension of one element has no order of its own in memory, and
# some copies are spared.
BATCHES = (2, 4)


@dataclass(frozen=True)
class Course:
    """Bytes alive after each function of a step of `batch` images, beside weights, gradients, optimiser and averages.

    Args:
        batch: images.
        work: what the step itself keeps: activations, tangents, products under way.
        gradients: how much of the gradients of the weights is there, in a step that starts without any.
        kept: what is left of `work` when the loss is known: the activations, kept for the backward pass.
    """

    batch: int
    work: tuple[int, ...]
    gradients: tuple[int, ...]
    kept: int

    def peak(self, share: float = 1.0, whole: int | None = None) -> tuple[int, int]:
        """Work and gradients, in bytes, at the moment when both together are most.

        Args:
            share: of the gradients that lies on this GPU.
            whole: bytes of all gradients, where they are there from the start, as in all but the first pass of a step;
                None: this is the first.
        """
        if whole is not None:
            return max(self.work), int(whole * share)
        moments = zip(self.work, self.gradients, strict=True)
        return max(((work, int(grads * share)) for work, grads in moments), key=sum)


@dataclass(frozen=True)
class Footprint:
    """What a training needs; in bytes where nothing else is said.

    Args:
        parameters: number of trained parameters.
        weights: of the trained networks, buffers included.
        teacher: weights of the teacher, and of its guide.
        gradients: of all trained parameters.
        optimizer: its state.
        averages: of the weights, a target network among them.
        block: weights of the largest block of the network: what full sharding gathers at a time.
        forward_flops: of a forward pass on one image; a multiplication and an addition are two.
        training_flops: of one image of training.
        courses: of a step at the two BATCHES.
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
    courses: tuple[Course, Course]

    def course(self, batch: int) -> Course:
        """At any batch: each moment grows linearly with it."""
        one, two = self.courses
        share = (batch - one.batch) / (two.batch - one.batch)
        if len(one.work) == len(two.work):
            work = tuple(_between(a, b, share) for a, b in zip(one.work, two.work, strict=True))
            return Course(batch, work, one.gradients, _between(one.kept, two.kept, share))
        # Where the number of functions depends on the batch (attention's tangent goes in parts) only the peaks can be
        # compared, and all gradients are taken to be there.
        peak = _between(max(one.work), max(two.work), share)
        return Course(batch, (peak,), (max(one.gradients),), _between(one.kept, two.kept, share))


def _between(one: int, two: int, share: float) -> int:
    return round(one + (two - one) * share)


def dry_run_step(
    recipe: Recipe, data_shape: tuple[int, ...], num_classes: int, checkpointing: bool = False
) -> Footprint:
    """Builds the networks of a recipe without their numbers and goes through its step, in eager mode.

    Args:
        recipe: of the training; a teacher and its guide are taken to be as large as the network.
        data_shape, num_classes: of the data.
        checkpointing: keep the inputs of the network's blocks only, and run each block again in the backward pass.

    Raises:
        UserError: an unknown part, or options that do not fit.
    """
    try:
        return _footprint_of(recipe, card_of(recipe, data_shape, num_classes, None), checkpointing)
    except UserError:
        raise
    except Exception as error:  # whatever code of the user's raises that wants to see numbers
        if ":" not in recipe.network.name + recipe.objective.name:
            raise
        raise UserError(
            f"a step of '{recipe.network.name}' cannot be gone through without numbers "
            f"({type(error).__name__}: {error})"
        ) from error


def _footprint_of(recipe: Recipe, card: ModelCard, checkpointing: bool) -> Footprint:
    options = {key: value for key, value in recipe.objective.options.items() if key != "compile"}
    objective: Objective = build(Component(recipe.objective.name, options), OBJECTIVES, "objective")
    # A module of the user's is imported here, where tensors have numbers.
    look_up(card.network.name, NETWORKS, "network")
    with FakeTensorMode(allow_non_fake_inputs=True):
        stage = _Stage(recipe, objective, card)
        forward_flops = stage.forward_flops()
        if checkpointing:
            stage.checkpoint_blocks()
        passes = objective.forwards_per_image + checkpointing
        one, two = (stage.step(batch) for batch in BATCHES)
        return stage.footprint(forward_flops, passes * forward_flops, (one, two))


class _Still(nn.Module):
    """In place of a closed form, which has no weights: a velocity of zero."""

    num_classes = 0

    def velocity(self, x_t: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
        return torch.zeros_like(x_t)


def _other(card: ModelCard) -> TrigFlowPrecond:
    """A teacher or its guide: the same network, but not told the guidance scale."""
    options = {key: value for key, value in card.network.options.items() if key != "guidance_input"}
    net = new_precond(replace(card, network=replace(card.network, options=options)))
    return net.eval().requires_grad_(False)


class _Stage:
    """The networks of a recipe with all that belongs to their training, without numbers."""

    def __init__(self, recipe: Recipe, objective: Objective, card: ModelCard) -> None:
        self.recipe, self.objective, self.card = recipe, objective, card
        teacher = None
        if objective.needs_teacher:
            teacher = _other(card) if recipe.teacher != "exact" else _Still()
        guide = _other(card) if recipe.guide is not None else None
        self.nets = networks_of(objective, lambda: new_precond(card).train(), teacher, guide)
        self.trained: dict[str, TrigFlowPrecond] = {name: self.nets[name] for name in objective.trains}
        for net in self.trained.values():
            check_guidance_input(net, recipe.objective.name, getattr(objective, "guidance_range", None))
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

    def forward_flops(self) -> int:
        """Of a pass on one image."""
        x, cond = self._inputs(1)
        if self.main.guidance_input:
            cond["guidance"] = torch.ones(1)
        return pass_flops(self.main, x, cond)

    def checkpoint_blocks(self) -> None:
        """Each block of a trained network is run again in the backward pass."""
        for net in self.trained.values():
            checkpoint_blocks(net)

    def step(self, batch: int) -> Course:
        """One pass on so many images, and all that follows it but the optimiser itself, which only writes in place."""
        work: list[int] = []
        gradients: list[int] = []
        there = [0]

        def watch(live: int) -> None:
            work.append(live - there[0])
            gradients.append(there[0])

        with Tracker(self._lasting(), watch) as tracker, self._gradients_counted(there):
            losses = self._losses(batch)
            kept = tracker.live
            names = list(losses)
            for name in names:
                losses[name].backward(inputs=self.parameters[name], retain_graph=name != names[-1])  # type: ignore[no-untyped-call]
            del losses
            self._finish(batch)
        for parameters in self.parameters.values():
            for parameter in parameters:
                parameter.grad = None
        return Course(batch, tuple(work), tuple(gradients), kept)

    def _lasting(self) -> list[Tensor]:
        """What outlasts a step."""
        found = [tensor for net in self.nets.values() for tensor in (*net.parameters(), *net.buffers())]
        for ema in self.averages.values():
            found += [tensor for average in ema.averages for tensor in average.values()]
        return found

    def _losses(self, batch: int) -> dict[str, Tensor]:
        x_0, labels = self._inputs(batch)
        random = SampleRandom(self.recipe.train.seed, torch.arange(batch))
        with products_in(self.recipe.train.precision, torch.device("cpu")):
            losses = self.objective(self.nets, Batch(x_0, labels, self.recipe.train.batch), 0, random).losses
        return losses

    @contextmanager
    def _gradients_counted(self, there: list[int]) -> Iterator[None]:
        """While it is on, there[0] is the number of bytes of gradients that have been made."""

        def count(parameter: Tensor) -> None:
            there[0] += _bytes([cast(Tensor, parameter.grad)])

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
        """Of its state after a first step."""
        total = 0
        for name, parameters in self.parameters.items():
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer = new_optimizer(self.recipe.optimizer_of(name), parameters)
            optimizer.step()
            total += _bytes(optimizer_tensors(optimizer).values())
        return total

    def footprint(
        self, forward_flops: int, training_flops: float, courses: tuple[Course, Course]
    ) -> Footprint:
        weights = {name: _bytes(net.state_dict().values()) for name, net in self.nets.items()}
        parameters = [parameter for group in self.parameters.values() for parameter in group]
        averages = [tensors for ema in self.averages.values() for tensors in ema.averages]
        return Footprint(
            parameters=sum(parameter.numel() for parameter in parameters),
            weights=sum(weights[name] for name in self.trained),
            teacher=weights.get("teacher", 0) + weights.get("guide", 0),
            gradients=_bytes(parameters),
            optimizer=self._optimizer_bytes(),
            averages=sum(_bytes(tensors.values()) for tensors in averages) + weights.get("target", 0),
            block=max(_bytes(block.parameters()) for block in [*blocks(self.main)] or [self.main]),
            forward_flops=forward_flops,
            training_flops=training_flops,
            courses=courses,
        )


def _bytes(tensors: Any) -> int:
    """Each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
