"""U-Net over 1, 2 or 3 spatial dimensions, with the changes that sCM (section 4.1) makes for a stable derivative."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.attention import SelfAttention, over_positions
from trigflow.networks.layers import (
    AVG_POOLS,
    CONVS,
    MEMORY_FORMATS,
    Dropout,
    Embedding,
    ModulatedNorm,
    as_channels,
    halving_levels,
    pixel_norm,
    positive,
    spatial_dims,
    unit_init,
    zero_init,
)
from trigflow.networks.patches import depth_to_space, space_to_depth
from trigflow.networks.u_shape import Place, way_down, way_up
from trigflow.system.devices import without_autocast


class UNetBlock(nn.Module):
    """x -> skip(x) + conv(dropout(silu(norm(conv(silu(pnorm(x))), emb)))), the last convolution initially zero."""

    def __init__(self, c_in: int, c_out: int, plan: UNetLayout) -> None:
        super().__init__()
        conv = CONVS[plan.dims]
        self.conv_1 = unit_init(conv(c_in, c_out, 3, padding=1))
        self.norm = ModulatedNorm(c_out, plan.emb_channels, plan.normalization)
        self.dropout = Dropout(plan.dropout)
        self.conv_2 = zero_init(conv(c_out, c_out, 3, padding=1))
        self.skip = nn.Identity() if c_in == c_out else unit_init(conv(c_in, c_out, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h: Tensor = self.conv_1(F.silu(pixel_norm(x)))
        h = self.conv_2(self.dropout(F.silu(self.norm(h, emb))))
        shortcut: Tensor = self.skip(x)
        return shortcut + h


class AttentionBlock(nn.Module):
    """x -> x + attention(pnorm(x)) over all positions of the image."""

    def __init__(self, channels: int, plan: UNetLayout) -> None:
        super().__init__()
        self.attention = SelfAttention(channels, max(1, channels // plan.head_channels), plan.qk_norm)

    def forward(self, x: Tensor) -> Tensor:
        return x + over_positions(self.attention, pixel_norm(x))


class Stage(nn.Module):
    """A residual block, followed by attention if `attention` is true."""

    def __init__(self, c_in: int, c_out: int, plan: UNetLayout, attention: bool) -> None:
        super().__init__()
        self.block = UNetBlock(c_in, c_out, plan)
        self.attention = AttentionBlock(c_out, plan) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        y: Tensor = self.attention(self.block(x, emb))
        return y


class InputGain(nn.Module):
    """a(emb) x, a skip connection around the whole network, with one gain for each channel of the data, initially zero.

    Where data has little variance, as on a black background, F = (cos(t) x_t - x_0) / (sin(t) sigma_data) is about
    cot(t) times the network's input. Norms and few channels reproduce that with visible noise; with the skip
    connection the network only has to predict the clean image, like networks that predict x_0.
    """

    def __init__(self, emb_channels: int, channels: int) -> None:
        super().__init__()
        self.gain = zero_init(nn.Linear(emb_channels, channels))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        with without_autocast(x.device):  # a rounded gain would be a rounded picture
            return x * as_channels(self.gain(emb), x)


@dataclass(frozen=True)
class UNetLayout:
    """What all blocks of one U-Net have in common."""

    dims: int
    emb_channels: int
    normalization: str
    dropout: float
    head_channels: int
    qk_norm: bool


class UNet(nn.Module):
    """F(x, t, labels, guidance) for audio, images and volumes.

    A level has `num_blocks` residual blocks in the encoder and `num_blocks + 1` in the decoder, which also take
    the matching skip connection; between levels the size is halved by averaging and doubled by repeating.
    Every residual branch ends in a layer that is initialised to zero, so each block starts as the identity (or its 1x1
    convolution) and F as 0.

    Args:
        data_shape: (C, *size) with 1, 2 or 3 sizes, each divisible by patch * 2^(levels - 1).
        num_classes: number of labels, 0 for none; label `num_classes` is the null label.
        patch: edge of the patches that become the pixels of the first level, 1 for the pixels themselves; 2 divides
            the cost of an image by about four.
        channels: channels of the first level, an even number.
        channel_mult: channels of each level as multiples of `channels`; its length is the number of levels.
        num_blocks: residual blocks in each level.
        attention_levels: levels (0 = full size) with self-attention after each block.
        middle_attention: self-attention after the block in the middle, at the lowest level.
        head_channels: channels of an attention head (there is always at least one head).
        emb_channels: channels of the embedding of time and label; None: 4 * channels.
        dropout: probability, in [0, 1).
        time_embedding: "positional" (sCM) or "fourier".
        fourier_scale: standard deviation of the frequencies of "fourier" (EDM's is 16).
        normalization: "double" (sCM) or "adagn".
        qk_norm: see `attention.SelfAttention`.
        input_gain: add a(t, labels, guidance) x to the output, see `InputGain`.
        guidance_input: take the guidance scale as an input, see `layers.GuidanceEmbedding`.

    Raises:
        UserError: an option out of range, or sizes that do not halve evenly.
    """

    # Parts that change nothing while they are fresh: a student may have them and start from a teacher without.
    additions = ("input_gain", "embedding.guidance")

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        patch: int = 1,
        channels: int = 64,
        channel_mult: Sequence[int] = (1, 2),
        num_blocks: int = 2,
        attention_levels: Sequence[int] = (),
        middle_attention: bool = True,
        head_channels: int = 64,
        emb_channels: int | None = None,
        dropout: float = 0.0,
        time_embedding: str = "positional",
        fourier_scale: float = 16.0,
        normalization: str = "double",
        qk_norm: bool = True,
        input_gain: bool = False,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        self.dims = spatial_dims("unet", data_shape)
        emb_channels = 4 * channels if emb_channels is None else emb_channels
        positive(
            patch=patch,
            channels=channels,
            num_blocks=num_blocks,
            head_channels=head_channels,
            emb_channels=emb_channels,
        )
        halving_levels("unet", data_shape, channel_mult, attention_levels, patch)
        self.patch = patch
        values = data_shape[0] * patch**self.dims
        self.num_classes, self.guidance_input = num_classes, guidance_input
        self.embedding = Embedding(
            channels, emb_channels, num_classes, time_embedding, fourier_scale, guidance_input
        )
        plan = UNetLayout(self.dims, emb_channels, normalization, dropout, head_channels, qk_norm)
        widths = [channels * mult for mult in channel_mult]
        attends = [level in attention_levels for level in range(len(widths))]
        self.conv_in = unit_init(CONVS[self.dims](values, channels, 3, padding=1))
        down, skips = way_down(widths, channels, num_blocks)
        self.down = _levels(down, attends, plan)
        self.middle = Stage(widths[-1], widths[-1], plan, middle_attention)
        self.up = _levels(way_up(widths, skips, num_blocks), attends, plan)
        self.conv_out = zero_init(CONVS[self.dims](widths[0], values, 3, padding=1))
        self.input_gain = InputGain(emb_channels, data_shape[0]) if input_gain else None

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """F at x_t / sigma_data.

        Args:
            x: (B, C, *size), of unit variance.
            t: (B,), c_noise(t).
            labels: (B,) int64 in [0, num_classes]; None: the null label.
            guidance: (B,), the guidance scale, for a network with guidance_input.

        Returns:
            (B, C, *size).
        """
        emb = self.embedding(t, labels, guidance)
        around = None if self.input_gain is None else self.input_gain(x, emb)
        x = space_to_depth(x, self.patch)
        x = self.conv_in(x.contiguous(memory_format=MEMORY_FORMATS[self.dims]))
        skips = [x]
        for level, stages in enumerate(cast("Iterable[nn.ModuleList]", self.down)):
            if level > 0:
                x = AVG_POOLS[self.dims](x, 2)
                skips.append(x)
            for stage in stages:
                x = stage(x, emb)
                skips.append(x)
        x = self.middle(x, emb)
        for level, stages in enumerate(cast("Iterable[nn.ModuleList]", self.up)):
            if level > 0:
                x = F.interpolate(x, scale_factor=2.0)
            for stage in stages:
                x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        output: Tensor = depth_to_space(self.conv_out(F.silu(pixel_norm(x))), self.patch)
        return output if around is None else output + around


def _levels(places: list[Place], attends: list[bool], plan: UNetLayout) -> nn.ModuleList:
    """Stages of each level, in the order of the places; between levels the size changes without a block."""
    within = [one for one in places if one.resample == "keep"]
    return nn.ModuleList(
        nn.ModuleList(Stage(one.c_in, one.c_out, plan, attends[level]) for one in stages)
        for level, stages in groupby(within, key=lambda one: one.level)
    )
