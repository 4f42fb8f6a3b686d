"""The blocks of a network: what is brought together from shards, or computed twice to keep less, as one."""

from __future__ import annotations

from torch import nn

from ..dual.checkpointing import recomputed

_LISTS = (nn.ModuleList, nn.ModuleDict)  # they have no forward of their own


def blocks(net: nn.Module) -> list[nn.Module]:
    """The modules of a network's outermost lists, in order; of lists of lists those that are called.

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
    """Activation checkpointing: of each block its inputs are kept alone, and the backward pass runs it once more.

    It changes no number. The single pass for value and tangent keeps and recomputes values only.
    """
    for block in blocks(net):
        block.forward = recomputed(block.forward)
