"""The network of EDM2 ("config G", arXiv 2312.02696), as published and with sCM's change (arXiv 2410.11081)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trigflow.networks.edm2_blocks import NORMALIZATIONS, EDM2Block, EDM2Layout
from trigflow.networks.layers import MEMORY_FORMATS, halving_levels, positive, share, spatial_dims
from trigflow.networks.magnitude import MPConv, MPEmbedding, mp_cat, normalize_weights
from trigflow.networks.u_shape import Place, through, way_down, way_up
from trigflow.system.errors import UserError, one_of

EDM2_SIZES = {"S": 192, "M": 256, "L": 320, "XL": 384, "XXL": 448}
"""Option `channels` of the published sizes; all other options are the defaults (docs/networks.md has the counts)."""


class EDM2(nn.Module):
    """F(x, t, labels, guidance): a U-Net all of whose layers preserve the magnitude of activations.

    Each level has `num_blocks` encoder blocks and one more decoder block, each of which also takes the
    matching skip connection. Between levels a separate block halves or doubles the size, and there are two blocks
    in the middle. There are no biases: an input channel of ones takes their place. The output's gain
    is initialised to zero, so that initially F = 0.

    A training loop must call `normalize_weights` after each optimiser step, as `trigflow.training.loop` does.

    Args:
        data_shape: (C, *size) with 1, 2 or 3 sizes, each divisible by 2^(levels - 1).
        num_classes: number of labels, 0 for none; label `num_classes` is the null label.
        channels: channels of the first level, an even number (EDM2_SIZES).
        channel_mult: channels of each level as multiples of `channels`; its length is the number of levels.
        num_blocks: blocks in each level.
        attention_levels: levels (0 = full size) with self-attention; the default is 16 and 8 pixels for images of 64.
        head_channels: channels of an attention head (there is always at least one head).
        dropout: probability, in [0, 1).
        dropout_resolution: the largest size of a level with dropout (sCM: 16); None: all levels have it.
        label_balance: share of the label in its sum with the time.
        concat_balance: share of the skip connection where it is concatenated in the decoder.
        res_balance, attn_balance: share of a residual branch, and of attention, in its sum.
        clip_act: activations are clipped to this magnitude after each block, for half precision.
        normalization: "double" (sCM) or "edm2" (as published), see `edm2_blocks.Modulation`.
        time_embedding: "positional" (sCM) or "fourier" (as published; it expects precond.c_noise = "edm").
        fourier_scale: standard deviation of the frequencies of "fourier".
        guidance_input: take the guidance scale as an input, see `magnitude.MPGuidance`.

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
        channels: int = EDM2_SIZES["S"],
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attention_levels: Sequence[int] = (2, 3),
        head_channels: int = 64,
        dropout: float = 0.0,
        dropout_resolution: int | None = None,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
        normalization: str = "double",
        time_embedding: str = "positional",
        fourier_scale: float = 1.0,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        dims = spatial_dims("edm2", data_shape)
        positive(channels=channels, num_blocks=num_blocks, head_channels=head_channels)
        halving_levels("edm2", data_shape, channel_mult, attention_levels)
        positive(dropout_resolution=1 if dropout_resolution is None else dropout_resolution)
        share(label_balance=label_balance, concat_balance=concat_balance)
        share(res_balance=res_balance, attn_balance=attn_balance)
        if not clip_act > 0:
            raise UserError(f"clip_act must be a positive number, not {clip_act}")
        self.num_classes, self.guidance_input = num_classes, guidance_input
        self.concat_balance = concat_balance
        plan = EDM2Layout(
            dims,
            widths=tuple(channels * mult for mult in channel_mult),
            attends=tuple(level in attention_levels for level in range(len(channel_mult))),
            dropouts=_dropouts(dropout, dropout_resolution, max(data_shape[1:]), len(channel_mult)),
            num_blocks=num_blocks,
            normalization=one_of("normalization", normalization, NORMALIZATIONS),
            head_channels=head_channels,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        width, emb = plan.widths[0], plan.emb_channels
        self.embedding = MPEmbedding(
            width, emb, num_classes, label_balance, time_embedding, fourier_scale, guidance_input
        )
        self.conv_in = MPConv(data_shape[0] + 1, width, plan.kernel(3))
        down, skips = way_down(plan.widths, width, plan.num_blocks)
        self.down = _blocks(down, plan, down=True)
        self.middle = _middle(plan)
        self.up = _blocks(way_up(plan.widths, skips, plan.num_blocks), plan, down=False)
        self.conv_out = MPConv(width, data_shape[0], plan.kernel(3))
        self.gain_out = nn.Parameter(torch.zeros(()))
        self.normalize_weights()

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """F at x_t / sigma_data, (B, C, *size); arguments as in `UNet.forward`."""
        emb = self.embedding(t, labels, guidance)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        x = self.conv_in(x.contiguous(memory_format=MEMORY_FORMATS[x.ndim - 2]))
        ways = (self.down, self.middle, self.up)
        x = through(x, emb, ways, lambda x, skip: mp_cat(x, skip, self.concat_balance))
        output: Tensor = self.conv_out(x, self.gain_out)
        return output

    def normalize_weights(self) -> None:
        """Forced weight normalisation, to be called after each optimiser step (`magnitude.normalize_weights`)."""
        normalize_weights(self)


def _dropouts(dropout: float, resolution: int | None, size: int, levels: int) -> tuple[float, ...]:
    """The dropout of each level, whose sizes are size, size / 2, ..."""
    return tuple(
        dropout if resolution is None or size // 2**level <= resolution else 0.0 for level in range(levels)
    )


def _blocks(places: Sequence[Place], plan: EDM2Layout, down: bool) -> nn.ModuleList:
    """Those of one way; attention in all of a level that has it."""
    return nn.ModuleList(
        EDM2Block(
            *(one.c_in, one.c_out, plan),
            down=down,
            resample=one.resample,
            attention=plan.attends[one.level] and one.resample == "keep",
            dropout=plan.dropouts[one.level],
            joins=one.joins,
        )
        for one in places
    )


def _middle(plan: EDM2Layout) -> nn.ModuleList:
    """Two blocks at the lowest level, the first with attention; they are built as those of the way up."""
    width, dropout = plan.widths[-1], plan.dropouts[-1]
    return nn.ModuleList(
        EDM2Block(width, width, plan, down=False, attention=attends, dropout=dropout)
        for attends in (True, False)
    )
