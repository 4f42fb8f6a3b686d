"""Residual multilayer perceptron, for vectors and for images too small for convolutions."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.layers import (
    Dropout,
    Embedding,
    ModulatedNorm,
    pixel_norm,
    positive,
    unit_init,
    zero_init,
)
from trigflow.system.errors import UserError

MAX_DEPTH = 10_000


class MLPBlock(nn.Module):
    """Residual block: h -> h + linear(dropout(silu(linear(norm(h, emb))))), the last layer initialised to zero."""

    def __init__(
        self, width: int, hidden: int, emb_channels: int, normalization: str, dropout: float
    ) -> None:
        super().__init__()
        self.norm = ModulatedNorm(width, emb_channels, normalization)
        self.linear_1 = unit_init(nn.Linear(width, hidden))
        self.dropout = Dropout(dropout)
        self.linear_2 = zero_init(nn.Linear(hidden, width))

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        branch: Tensor = self.linear_2(self.dropout(F.silu(self.linear_1(self.norm(h, emb)))))
        return h + branch


class MLP(nn.Module):
    """F(x, t, labels, guidance) for data of any shape, taken as one vector.

    Args:
        data_shape: shape of one sample, at least one dimension.
        num_classes: number of labels; 0 for none. Label `num_classes` is the null label.
        width: channels of the residual stream.
        depth: number of residual blocks.
        hidden: channels inside a block; default 2 * width.
        emb_channels: channels of the embedding of time and label; default width // 2.
        dropout: probability, in [0, 1).
        time_embedding, fourier_scale: see `layers.Embedding`.
        normalization: see `layers.ModulatedNorm`.
        guidance_input: take the guidance scale as an input, see `layers.GuidanceEmbedding`.

    Raises:
        UserError: an option out of range.
    """

    # What changes nothing while it is fresh: a student may have it and start from a teacher without.
    additions = ("embedding.guidance",)

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        *,
        width: int = 128,
        depth: int = 3,
        hidden: int | None = None,
        emb_channels: int | None = None,
        dropout: float = 0.0,
        time_embedding: str = "positional",
        fourier_scale: float = 16.0,
        normalization: str = "double",
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        if not data_shape:
            raise UserError(
                "network 'mlp' takes data of shape (D,) or (channels, sizes), not numbers without a shape"
            )
        positive(width=width, depth=depth)
        if depth > MAX_DEPTH:
            raise UserError(f"depth must be at most {MAX_DEPTH}, not {depth}")
        positive(**{f"data_shape[{axis}]": size for axis, size in enumerate(data_shape)})
        size = math.prod(data_shape)
        hidden = 2 * width if hidden is None else hidden
        emb_channels = max(2, width // 2) if emb_channels is None else emb_channels
        positive(hidden=hidden, emb_channels=emb_channels)
        self.num_classes, self.guidance_input = num_classes, guidance_input
        self.embedding = Embedding(
            _FEATURES, emb_channels, num_classes, time_embedding, fourier_scale, guidance_input
        )
        self.linear_in = unit_init(nn.Linear(size, width))
        self.blocks = nn.ModuleList(
            MLPBlock(width, hidden, emb_channels, normalization, dropout) for _ in range(depth)
        )
        self.linear_out = zero_init(nn.Linear(width, size))

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor | None = None, guidance: Tensor | None = None
    ) -> Tensor:
        """F at x_t / sigma_data.

        Args:
            x: (B, ...), of unit variance.
            t: (B,), c_noise(t).
            labels: (B,) int64 in [0, num_classes]; None: the null label.
            guidance: (B,), the guidance scale, for a network with guidance_input.

        Returns:
            F, of the shape of x.
        """
        emb = self.embedding(t, labels, guidance)
        h = self.linear_in(x.flatten(1))
        for block in self.blocks:
            h = block(h, emb)
        output: Tensor = self.linear_out(pixel_norm(h))
        return output.reshape(x.shape)


# Sinusoids of the time; the embedding's width is what scales with the network.
_FEATURES = 64
