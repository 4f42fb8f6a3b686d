"""Self-attention over the positions of an image, with a derivative in every mode."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.layers import pixel_norm, unit_init, zero_init
from trigflow.system.errors import UserError


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    Args:
        q, k, v: (B, heads, N, d).

    Returns:
        (B, heads, N, d).
    """
    return F.scaled_dot_product_attention(q, k, v)


def over_positions(attention: nn.Module, x: Tensor) -> Tensor:
    """Attention on tokens (B, N, C), over all positions of x (B, C, *size); of the shape of x."""
    y: Tensor = attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)
    return y


def check_heads(channels: int, heads: int) -> None:
    """Raise a UserError unless the channels divide into the heads."""
    if channels % heads:
        raise UserError(
            f"{channels} channels do not divide into {heads} attention heads; change channels, or heads or "
            "head_channels"
        )


class SelfAttention(nn.Module):
    """Multi-head self-attention on tokens (B, N, C) -> (B, N, C); the output layer starts at zero.

    Args:
        channels: C.
        heads: number of heads, a divisor of C.
        qk_norm: pixel-normalise queries, keys and values over the channels of each head (EDM2, equation 29), which
            bounds the logits and with them the derivative.
    """

    def __init__(self, channels: int, heads: int, qk_norm: bool = True) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.qk_norm = qk_norm
        self.qkv = unit_init(nn.Linear(channels, 3 * channels))
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, channels // self.heads)
        if self.qk_norm:
            qkv = pixel_norm(qkv, dim=4)
        q, k, v = qkv.transpose(1, 3).unbind(2)  # (B, heads, 3, N, d) -> 3 x (B, heads, N, d)
        y = attention(q, k, v).transpose(1, 2).reshape(batch, tokens, channels)
        output: Tensor = self.out(y)
        return output
