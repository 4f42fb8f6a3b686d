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
    """Raises a UserError unless each process has as many images of a batch as the others, in whole microbatches."""
    batch, share = config.batch, config.batch // world.size
    if batch % world.size:
        raise UserError(
            f"{world.size} processes do not divide the batch of {batch} images: start another number of them"
        )
    size = config.microbatch or share
    if share % min(size, share):
        raise UserError(
            f"train.microbatch = {size} does not divide the {share} images that each of {world.size} processes has of "
            "a step: start another number of them"
        )


def shard(net: TrigFlowPrecond, world: World) -> None:
    """Shares the weights out among the processes, on their devices; what they are comes from the main process.

    Each block of the network is brought together when it computes, and what is in no block as one more. All is done
    by modules that are called: of TrigFlowPrecond itself velocity, denoised and logvar are, so it is left as it is.
    Single numbers have no parts: every process has them, see `average_gradients`.

    Args:
        net: with its weights on the CPU in the main process; in the others they may be blank, on "meta".
        world: more than one process.
    """
    # It may return a view, as a network of vectors does: nothing here writes into what a network returns.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    # These stay on the CPU when the network moves.
    first = {name: tensor.detach() for name, tensor in _tensors(net)}
    numbers = {parameter for parameter in net.parameters() if parameter.ndim == 0}
    for part in (*blocks(net.network), net.network, net.adaptive_weight):
        # Brought together again for the backward pass, also what is in no block: where a pass has no backward pass (a
        # teacher's, a sample's), it would else be found as it was before the next step.
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
    """Copies the main process's tensors into the network, one by one: no other process ever has it as a whole."""
    for name, tensor in _tensors(net):
        if world.is_main:
            full = first[name].to(world.device).contiguous()
        else:
            full = torch.empty(tensor.shape, dtype=tensor.dtype, device=world.device)
        dist.broadcast(full, 0)
        own_part(tensor).copy_(own_part(sharded_like(full, tensor)))


def reduce_over_replicas(net: nn.Module, last: bool) -> None:
    """Before a backward pass, whether it is the last of a step.

    Gradients are summed within the shards after every pass, so that no process ever keeps whole ones; over replicas,
    where each has its own already, only after the last.
    """
    for module in net.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(last, recurse=False)


def average_gradients(weights: Sequence[Tensor], world: World) -> None:
    """In place, the mean over the processes: of what is not sharded, whose gradients nobody else averages."""
    if not weights:
        return
    gradients = [weight.grad for weight in weights if weight.grad is not None]
    mean = world.total(torch.stack(gradients)) / world.size
    for gradient, value in zip(gradients, mean, strict=True):
        gradient.copy_(value)


def norm_of_parts(pairs: Sequence[tuple[Tensor, Tensor]], world: World) -> Tensor:
    """The norm of all gradients together, a scalar, the same in every process.

    Args:
        pairs: weights, and this process's parts of them, with gradients.
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
