"""The blocks of a network, the units of sharding and of activation checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from trigflow.dual.checkpointing import recomputed
from trigflow.networks.dropout import dropouts, with_dropout_keys

_LISTS = (nn.ModuleList, nn.ModuleDict)  # they have no forward of their own


def blocks(net: nn.Module) -> list[nn.Module]:
    """The modules in a network's outermost module lists, in order; of nested lists the modules that are called.

    A network without lists has no blocks.
    """
    found: list[nn.Module] = []
    for child in net.children():
        found += _members(child) if isinstance(child, _LISTS) else blocks(child)
    return found


def _members(modules: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for one in modules.children():
        found += _members(one) if isinstance(one, _LISTS) else [one]
    return found


def checkpoint_blocks(net: nn.Module) -> None:
    """Activation checkpointing: only the inputs of each block are stored, and the backward pass runs the block again.

    Results do not change. The single pass for value and tangent stores and recomputes values only.
    """
    for block in blocks(net):
        block.forward = _recomputed_with_its_masks(block, block.forward)


def _recomputed_with_its_masks(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    """The recomputation, when dropout is no longer seeded, uses the dropout keys of the first run."""
    layers = dropouts(block)
    if not layers:
        return recomputed(forward)

    def run_with(keys: Mapping[str, Tensor | None], *args: Any, **kwargs: Any) -> Any:
        with with_dropout_keys(block, keys):
            return forward(*args, **kwargs)

    run = recomputed(run_with)
    return lambda *args, **kwargs: run({name: layer.keys for name, layer in layers.items()}, *args, **kwargs)
