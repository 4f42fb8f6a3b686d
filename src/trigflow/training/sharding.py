"""Sharding a network's weights over several processes, by PyTorch's fully_shard (FSDP2)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard

from trigflow.core.precond import TrigFlowPrecond
from trigflow.networks.blocks import blocks
from trigflow.recipes.schema import TrainConfig
from trigflow.system.distributed import World, is_sharded, own_part, sharded_like
from trigflow.system.errors import UserError


def check_shares(config: TrainConfig, world: World) -> None:
    """Raises a UserError unless all processes have equal shares of a batch, in whole microbatches."""
    batch, share = config.batch, config.batch // world.size
    if batch % world.size:
        raise UserError(
            f"{world.size} processes do not divide the batch of {batch} images: start another number of processes"
        )
    size = config.microbatch or share
    if share % min(size, share):
        raise UserError(
            f"train.microbatch = {size} does not divide the {share} images per step of each of {world.size} processes: "
            "start another number of processes"
        )


def shard(net: TrigFlowPrecond, world: World) -> None:
    """Shards the weights over the processes, on their devices; their values come from the main process.

    Each block of the network is gathered when it computes, and so are the weights outside of blocks, together. This
    works for modules that are called; velocity, denoised and logvar of TrigFlowPrecond are methods, so it is not
    wrapped itself. Scalars are not sharded: every process has them, see `average_gradients`.

    Args:
        net: the network, with its weights on the CPU in the main process; in the others they may be on "meta".
        world: two or more processes.
    """
    # It may return a view, as a network of vectors does: nothing here writes into what a network returns.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # These stay on the CPU when the network moves.
    first = {name: tensor.detach() for name, tensor in _tensors(net)}
    numbers = {parameter for parameter in net.parameters() if parameter.ndim == 0}
    for part in (*blocks(net.network), net.network, net.adaptive_weight):
        # Gathered again for the backward pass, also the weights outside of blocks: after a pass without a backward pass
        # (of a teacher, or in sampling) they would else have the values from before the next step.
        fully_shard(part, mesh=world.mesh, reshard_after_forward=True, ignored_params=numbers)
    if not world.is_main:
        net.to_empty(device=world.device)
    for parameter in numbers if world.is_main else ():
        parameter.data = parameter.data.to(world.device)
    _fill(net, first, world)


def _tensors(net: nn.Module) -> list[tuple[str, Tensor]]:
    return [*net.named_parameters(), *net.named_buffers()]


@torch.no_grad()
def _fill(net: nn.Module, first: dict[str, Tensor], world: World) -> None:
    """Copies the main process's tensors into the network, one by one: no other process ever has all of them."""
    for name, tensor in _tensors(net):
        if world.is_main:
            full = first[name].to(world.device).contiguous()
        else:
            full = torch.empty(tensor.shape, dtype=tensor.dtype, device=world.device)
        dist.broadcast(full, 0)
        own_part(tensor).copy_(own_part(sharded_like(full, tensor)))


def gathered_weights(net: TrigFlowPrecond) -> dict[int, Tensor]:
    """Collects the whole weights that a sharded network gathers in its forward passes, by their id.

    These, rather than the shards, are the leaves of the graph; each block gathers into the same tensor every time. A
    backward pass with them as its inputs has gradients of this network alone, also where the loss depends on others.
    """
    found: dict[int, Tensor] = {}

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def collect(module: nn.Module, args: object) -> None:
        whole = (weight for weight in module.parameters() if weight.requires_grad and not is_sharded(weight))
        found.update((id(weight), weight) for weight in whole)

    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.register_forward_pre_hook(collect)  # after its own, which gathers
    return found


def reduce_over_replicas(net: nn.Module, last: bool) -> None:
    """Sets where gradients are reduced after the next backward pass, which may be the last of a step.

    Over shards they are reduced after every pass, so that no process keeps whole gradients; over replicas, which keep
    their own, only after the last.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(last, recurse=False)


def average_gradients(weights: Sequence[Tensor], world: World) -> None:
    """Averages the gradients of the weights that are not sharded over the processes, in place."""
    if not weights:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    mean = world.total(torch.stack(gradients)) / world.size
    for gradient, value in zip(gradients, mean, strict=True):
        gradient.copy_(value)


def norm_of_parts(pairs: Sequence[tuple[Tensor, Tensor]], world: World) -> Tensor:
    """The norm of all gradients together, a scalar, the same in every process.

    Args:
        pairs: weights, and this process's shards of them, with gradients.
        world: the processes.
    """
    squares = {True: [], False: []}  # type: dict[bool, list[Tensor]]
    for weight, part in pairs:
        assert part.grad is not None
        squares[is_sharded(weight)].append(torch.linalg.vector_norm(part.grad).square())
    replicas = world.size // world.mesh["shard"].size()
    total = world.total(torch.stack(squares[True]).sum()) / replicas
    norm: Tensor = (total + sum(squares[False], torch.zeros_like(total))).sqrt()
    return norm
