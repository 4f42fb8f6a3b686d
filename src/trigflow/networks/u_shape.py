"""The layout of U-Nets: the order of their blocks, and the forward pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from trigflow.networks.resample import Resample


@dataclass(frozen=True)
class Place:
    """The position of a block in the U-Net.

    Args:
        c_in, c_out: numbers of input and output channels.
        level: 0 has the highest resolution; a block between two levels has the level of its output.
        resample: keep, halve or double the size; "keep" within a level.
        joins: whether the input includes a skip connection.
        last: whether it is the last decoder block of its level.
    """

    c_in: int
    c_out: int
    level: int
    resample: Resample = "keep"
    joins: bool = False
    last: bool = False


def way_down(widths: Sequence[int], channels: int, num_blocks: int) -> tuple[list[Place], list[int]]:
    """The places of the encoder blocks, and the channels of the skip connections, in order of computation.

    Args:
        widths: channels of each level.
        channels: channels of the encoder's input.
        num_blocks: blocks in each level.
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
    """The places of the decoder blocks, lowest level first; each within a level takes the last unused skip connection.

    Args:
        widths, num_blocks: as in `way_down`; a level has one more block here.
        skips: channels of the skip connections, from `way_down`.
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
    """The forward pass of x (B, C, *size) through encoder, middle and decoder.

    Args:
        x, emb: the input of the first block, and the embedding (B, E), an input of every block.
        ways: the blocks of encoder, middle and decoder; those of the decoder have an attribute `joins`.
        join: combines x and a skip connection to the input of a decoder block.
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
