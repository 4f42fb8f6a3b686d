"""DDPM++ (arXiv 2011.13456) in the form of EDM (arXiv 2206.00364), as published and as sCM uses it for CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.ddpmpp_blocks import (
    NORMALIZATIONS,
    DDPMppBlock,
    DDPMppLayout,
    GroupNorm,
    WaveEmbedding,
    xavier_init,
)
from trigflow.networks.layers import CONVS, MEMORY_FORMATS, halving_levels, positive, spatial_dims, zero_init
from trigflow.networks.u_shape import Place, through, way_down, way_up
from trigflow.system.errors import one_of


class DDPMpp(nn.Module):
    """F(x, t, labels, guidance): a U-Net with group norms; by default that of CIFAR-10, with 60.1 million parameters.

    As published, with normalization = "shift", it has 55.7 million.

    Each level has `num_blocks` encoder blocks and one more decoder block, each of which also takes the
    matching skip connection. Between levels a separate block halves or doubles the size, and there are two blocks
    in the middle, the first with attention. A level with attention has it in each encoder block and in
    the last decoder block. Every residual branch ends in a layer that is initialised to zero, and so does the network:
    initially F = 0.

    Args:
        data_shape: (C, *size) with 1, 2 or 3 sizes, each divisible by 2^(levels - 1).
        num_classes: number of labels, 0 for none; label `num_classes` is the null label.
        channels: output channels of the first convolution, an even number.
        channel_mult: channels of each level as multiples of `channels`; its length is the number of levels.
        num_blocks: blocks in each level.
        attention_levels: levels (0 = full size) with self-attention; the default is 16 pixels for images of 32.
        heads: attention heads, a divisor of the channels of each level that has attention, and of the lowest level.
        emb_channels: channels of the embedding of time and label; None: 4 * channels.
        dropout: probability, in [0, 1).
        normalization: "double" (sCM), "adagn" or "shift" (as published), see `ddpmpp_blocks.Modulation`.
        time_embedding: "positional" (sCM, and as published; EDM's expects precond.c_noise = "edm") or "fourier".
        fourier_scale: standard deviation of the frequencies of "fourier".
        guidance_input: take the guidance scale as an input, see `layers.GuidanceEmbedding`.

    Raises:
        UserError: an option out of range, or sizes that do not halve evenly.
    """

    # What changes nothing while it is fresh: a student may have it and start from a teacher without.
    additions = ("embedding.guidance",)

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        num_blocks: int = 4,
        attention_levels: Sequence[int] = (1,),
        heads: int = 1,
        emb_channels: int | None = None,
        dropout: float = 0.0,
        normalization: str = "double",
        time_embedding: str = "positional",
        fourier_scale: float = 16.0,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        dims = spatial_dims("ddpmpp", data_shape)
        emb_channels = 4 * channels if emb_channels is None else emb_channels
        positive(channels=channels, num_blocks=num_blocks, heads=heads, emb_channels=emb_channels)
        halving_levels("ddpmpp", data_shape, channel_mult, attention_levels)
        self.num_classes, self.guidance_input = num_classes, guidance_input
        plan = DDPMppLayout(
            dims,
            widths=tuple(channels * mult for mult in channel_mult),
            attends=tuple(level in attention_levels for level in range(len(channel_mult))),
            num_blocks=num_blocks,
            emb_channels=emb_channels,
            normalization=one_of("normalization", normalization, NORMALIZATIONS),
            heads=heads,
            dropout=dropout,
        )
        self.embedding = WaveEmbedding(
            channels, emb_channels, num_classes, time_embedding, fourier_scale, guidance_input
        )
        self.conv_in = xavier_init(CONVS[dims](data_shape[0], channels, 3, padding=1))
        down, skips = way_down(plan.widths, channels, num_blocks)
        self.down = _blocks([(one, one.resample == "keep") for one in down], plan)
        self.middle = _middle(plan)
        self.up = _blocks([(one, one.last) for one in way_up(plan.widths, skips, num_blocks)], plan)
        self.norm_out = GroupNorm(plan.widths[0])
        self.conv_out = zero_init(CONVS[dims](plan.widths[0], data_shape[0], 3, padding=1))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """F at x_t / sigma_data, (B, C, *size); arguments as in `UNet.forward`."""
        emb = self.embedding(t, labels, guidance)
        x = self.conv_in(x.contiguous(memory_format=MEMORY_FORMATS[x.ndim - 2]))
        x = through(x, emb, (self.down, self.middle, self.up), lambda x, skip: torch.cat([x, skip], dim=1))
        output: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return output


def _blocks(places: Sequence[tuple[Place, bool]], plan: DDPMppLayout) -> nn.ModuleList:
    """Those of one way; with each place, whether it has attention in a level that has it."""
    return nn.ModuleList(
        DDPMppBlock(
            *(one.c_in, one.c_out, plan),
            resample=one.resample,
            attention=plan.attends[one.level] and may_attend,
            joins=one.joins,
        )
        for one, may_attend in places
    )


def _middle(plan: DDPMppLayout) -> nn.ModuleList:
    """Two blocks at the lowest level, the first with attention."""
    width = plan.widths[-1]
    return nn.ModuleList(DDPMppBlock(width, width, plan, attention=attends) for attends in (True, False))
