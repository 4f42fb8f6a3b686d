"""Diffusion transformer over 1, 2 or 3 spatial dimensions (Peebles and Xie, 2022), with sCM's norms."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.attention import SelfAttention
from trigflow.networks.layers import (
    CONVS,
    Dropout,
    Embedding,
    ModulatedNorm,
    positive,
    spatial_dims,
    unit_init,
    zero_init,
)
from trigflow.networks.patches import depth_to_space
from trigflow.system.errors import UserError

DIT_SIZES: dict[str, dict[str, int]] = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
"""Options of the published sizes (arXiv 2212.09748, table 1); docs/networks.md has the counts."""


class DiTBlock(nn.Module):
    """x -> x + attention(norm(x, emb)) -> x + mlp(norm(x, emb)) on tokens (B, N, C); both branches initially zero."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        emb_channels: int,
        normalization: str,
        dropout: float,
        qk_norm: bool,
    ) -> None:
        super().__init__()
        self.norm_1 = ModulatedNorm(width, emb_channels, normalization, dim=-1)
        self.attention = SelfAttention(width, heads, qk_norm)
        self.norm_2 = ModulatedNorm(width, emb_channels, normalization, dim=-1)
        self.linear_1 = unit_init(nn.Linear(width, hidden))
        self.dropout = Dropout(dropout)
        self.linear_2 = zero_init(nn.Linear(hidden, width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x, emb))
        branch: Tensor = self.linear_2(self.dropout(F.silu(self.linear_1(self.norm_2(x, emb)))))
        return x + branch


class DiT(nn.Module):
    """F(x, t, labels, guidance): `depth` transformer blocks on patches of the image as tokens.

    Args:
        data_shape: (C, *size) with 1, 2 or 3 sizes, each divisible by `patch`.
        num_classes: number of labels; 0 for none. Label `num_classes` is the null label.
        patch: edge of a patch.
        width: channels of a token, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: channels inside a block's MLP, as a multiple of `width`.
        emb_channels: channels of the embedding of time and label; default `width`.
        dropout: probability, in [0, 1).
        time_embedding, fourier_scale: see `layers.Embedding`.
        normalization: see `layers.ModulatedNorm`.
        qk_norm: see `attention.SelfAttention`.
        guidance_input: take the guidance scale as an input, see `layers.GuidanceEmbedding`.

    Raises:
        UserError: an option out of range, or sizes that the patch does not divide.
    """

    # What changes nothing while it is fresh: a student may have it and start from a teacher without.
    additions = ("embedding.guidance",)

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        patch: int = 2,
        width: int = 192,
        depth: int = 6,
        heads: int = 3,
        mlp_ratio: int = 4,
        emb_channels: int | None = None,
        dropout: float = 0.0,
        time_embedding: str = "positional",
        fourier_scale: float = 16.0,
        normalization: str = "double",
        qk_norm: bool = True,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        dims = spatial_dims("dit", data_shape)
        emb_channels = width if emb_channels is None else emb_channels
        positive(
            patch=patch, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio, emb_channels=emb_channels
        )
        if any(size % patch for size in data_shape[1:]):
            raise UserError(
                f"a dit of patch {patch} needs sizes divisible by {patch}, not {tuple(data_shape[1:])}"
            )
        self.num_classes, self.guidance_input = num_classes, guidance_input
        self.patch = patch
        self.grid = tuple(size // patch for size in data_shape[1:])
        self.embedding = Embedding(
            width, emb_channels, num_classes, time_embedding, fourier_scale, guidance_input
        )
        self.patchify = unit_init(CONVS[dims](data_shape[0], width, patch, stride=patch))
        self.position = nn.Parameter(torch.randn(1, math.prod(self.grid), width) / math.sqrt(2))
        self.blocks = nn.ModuleList(
            DiTBlock(width, heads, mlp_ratio * width, emb_channels, normalization, dropout, qk_norm)
            for _ in range(depth)
        )
        self.norm_out = ModulatedNorm(width, emb_channels, normalization, dim=-1)
        self.linear_out = zero_init(nn.Linear(width, data_shape[0] * patch**dims))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """F at x_t / sigma_data, (B, C, *size); arguments as in `UNet.forward`."""
        emb = self.embedding(t, labels, guidance)
        tokens = self.patchify(x).flatten(2).transpose(1, 2) + self.position  # (B, C, *grid) -> (B, N, width)
        for block in self.blocks:
            tokens = block(tokens, emb)
        patches = self.linear_out(self.norm_out(tokens, emb)).transpose(1, 2)
        return depth_to_space(patches.reshape(len(x), -1, *self.grid), self.patch)
