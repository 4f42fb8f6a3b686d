"""The blocks of EDM2 ("config G", arXiv 2312.02696), as published and with sCM's change."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trigflow.networks.attention import attention, check_heads
from trigflow.networks.layers import Dropout, as_channels
from trigflow.networks.magnitude import MPConv, mp_silu, mp_sum, unit_magnitude
from trigflow.networks.resample import Resample, resampled

NORMALIZATIONS = ("double", "edm2")


@dataclass(frozen=True)
class EDM2Layout:
    """What all blocks of one network have in common; of the levels, the highest resolution first."""

    dims: int
    widths: tuple[int, ...]  # channels of each level
    attends: tuple[bool, ...]  # whether a level has attention
    dropouts: tuple[float, ...]  # of each level
    num_blocks: int
    normalization: str
    head_channels: int
    res_balance: float
    attn_balance: float
    clip_act: float

    @property
    def emb_channels(self) -> int:
        """Channels of the embedding of time and label."""
        return max(self.widths)

    def kernel(self, edge: int) -> tuple[int, ...]:
        """The size of a kernel of this edge."""
        return (edge,) * self.dims


class Modulation(nn.Module):
    """h -> h with its channels scaled (and shifted) by the embedding of time and label.

    "double" (sCM, section 4.1):   y = pnorm(h) * pnorm(s) + pnorm(b)
    "edm2"   (as published):       y = h * (1 + s), with a learned gain of s that starts at zero

    Args:
        channels: C, number of channels of h.
        emb_channels: E, number of channels of the embedding.
        normalization: "double" or "edm2".
    """

    def __init__(self, channels: int, emb_channels: int, normalization: str) -> None:
        super().__init__()
        double = normalization == "double"
        self.style = MPConv(emb_channels, 2 * channels if double else channels)
        self.gain = None if double else nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (B, C, *size), emb (B, E) -> (B, C, *size)."""
        if self.gain is not None:
            return h * as_channels(self.style(emb, self.gain) + 1, h)
        style = unit_magnitude(self.style(emb).reshape(h.shape[0], 2, h.shape[1]), 2)
        scale, shift = style.unbind(1)
        return unit_magnitude(h, 1) * as_channels(scale, h) + as_channels(shift, h)


class Branch(nn.Module):
    """The residual branch: conv(dropout(mp_silu(modulation(conv(mp_silu(x)), emb))))."""

    def __init__(self, c_in: int, c_out: int, plan: EDM2Layout, dropout: float) -> None:
        super().__init__()
        self.conv_1 = MPConv(c_in, c_out, plan.kernel(3))
        self.modulation = Modulation(c_out, plan.emb_channels, plan.normalization)
        self.dropout = Dropout(dropout)
        self.conv_2 = MPConv(c_out, c_out, plan.kernel(3))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.modulation(self.conv_1(mp_silu(x)), emb)
        y: Tensor = self.conv_2(self.dropout(mp_silu(h)))
        return y


class CosineAttention(nn.Module):
    """x -> mp_sum(x, attention(x)) over all positions; queries, keys and values are vectors of magnitude 1."""

    def __init__(self, channels: int, plan: EDM2Layout) -> None:
        super().__init__()
        self.heads = max(1, channels // plan.head_channels)
        check_heads(channels, self.heads)
        self.balance = plan.attn_balance
        self.qkv = MPConv(channels, 3 * channels, plan.kernel(1))
        self.out = MPConv(channels, channels, plan.kernel(1))

    def forward(self, x: Tensor) -> Tensor:
        batch, channels = x.shape[:2]
        # (B, 3 C, *size) -> (B, 3, heads, C / heads, N) -> 3 x (B, heads, N, C / heads)
        qkv = self.qkv(x).reshape(batch, 3, self.heads, channels // self.heads, -1)
        q, k, v = unit_magnitude(qkv, 3).transpose(3, 4).unbind(1)
        y = attention(q, k, v).transpose(2, 3).reshape(x.shape)
        return mp_sum(x, self.out(y), self.balance)


class EDM2Block(nn.Module):
    """A block of the U-Net: resampling, residual branch, attention, clipping.

    In an encoder block the input of both shortcut and branch is the pixel norm of x after the 1x1 convolution (which is
    there where the channels change); in a decoder block the input of the branch is x itself.

    Args:
        c_in, c_out: numbers of input and output channels.
        plan: the settings that all blocks share.
        down: whether it is an encoder block.
        resample: keep, halve or double the size, before all else.
        attention: self-attention over all positions after the branch.
        dropout: probability, in [0, 1).
        joins: whether the input includes a skip connection.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        plan: EDM2Layout,
        *,
        down: bool,
        resample: Resample = "keep",
        attention: bool = False,
        dropout: float = 0.0,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.plan, self.down, self.resample, self.joins = plan, down, resample, joins
        self.skip = nn.Identity() if c_in == c_out else MPConv(c_in, c_out, plan.kernel(1))
        self.branch = Branch(c_out if down else c_in, c_out, plan, dropout)
        self.attention = CosineAttention(c_out, plan) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = resampled(x, self.resample)
        shortcut: Tensor = self.skip(x)
        if self.down:
            x = shortcut = unit_magnitude(shortcut, 1)
        x = self.attention(mp_sum(shortcut, self.branch(x, emb), self.plan.res_balance))
        return x.clamp(-self.plan.clip_act, self.plan.clip_act)
