"""The shape of U-Nets: where their blocks stand, and the way through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trigflow.networks.resample import Resample


@dataclass(frozen=True)
class Place:
    """Where a block stands.

    Args:
        c_in, c_out: channels.
        level: 0 has the highest resolution; of a block between two levels the one that it leads to.
        resample: what it does to the size; "keep" within a level.
        joins: whether it takes an activation of the way down beside x.
        last: whether it is the last of its level on the way up.
    """

    c_in: int
    c_out: int
    level: int
    resample: Resample = "keep"
    joins: bool = False
    last: bool = False


def way_down(widths: Sequence[int], channels: int, num_blocks: int) -> tuple[list[Place], list[int]]:
    """Places on the way down, and the channels of the activations that the way up will join, in order of appearance.

    Args:
        widths: channels of each level.
        channels: of what comes in.
        num_blocks: within each level.
    """
    places: list[Place] = []
    skips = [channels]
    for level, width in enumerate(widths):
        if level > 0:
            places.append(Place(skips[-1], skips[-1], level, "halve"))
            skips.append(skips[-1])
        for _ in range(num_blocks):
            places.append(Place(skips[-1], width, level))
            skips.append(width)
    return places, skips


def way_up(widths: Sequence[int], skips: Sequence[int], num_blocks: int) -> list[Place]:
    """Places on the way up, lowest level first; each in a level joins the last activation of the way down that is left.

    Args:
        widths, num_blocks: as of `way_down`; a level has one block more here.
        skips: what `way_down` says.
    """
    places: list[Place] = []
    c_in, left = widths[-1], list(skips)
    for level, width in reversed(list(enumerate(widths))):
        if places:
            places.append(Place(c_in, c_in, level, "double"))
        for number in range(num_blocks + 1):
            last = number == num_blocks
            places.append(Place(c_in + left.pop(), width, level, joins=True, last=last))
            c_in = width
    return places


def through(
    x: Tensor,
    emb: Tensor,
    ways: tuple[nn.ModuleList, nn.ModuleList, nn.ModuleList],
    join: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """x (B, C, *size) and its embedding through the blocks of the ways down, in the middle and up.

    Args:
        x, emb: of each block.
        ways: blocks; those of the way up have an attribute `joins`.
        join: of x and an activation of the way down, what a block that joins takes.
    """
    down, middle, up = ways
    skips = [x]
    for block in down:
        x = block(x, emb)
        skips.append(x)
    for block in middle:
        x = block(x, emb)
    for block in up:
        if block.joins:
            x = join(x, skips.pop())
        x = block(x, emb)
    return x
