"""The blocks of DDPM++ (arXiv 2011.13456) in the form of EDM (arXiv 2206.00364), as published and with sCM's change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.attention import SelfAttention, over_positions
from trigflow.networks.layers import (
    CONVS,
    Dropout,
    GuidanceEmbedding,
    Layer,
    as_channels,
    check_conditions,
    one_hot,
    pixel_norm,
    time_features,
    zero_init,
)
from trigflow.networks.resample import Resample, resampled
from trigflow.system.devices import without_autocast
from trigflow.system.errors import one_of

NORMALIZATIONS = ("double", "adagn", "shift")

# A sum of shortcut and branch times this keeps the variance of two that are alike.
_SKIP_SCALE = math.sqrt(0.5)
_MAX_GROUPS, _MIN_CHANNELS = 32, 4


@dataclass(frozen=True)
class DDPMppLayout:
    """What all blocks of one network have in common; of the levels, the highest resolution first."""

    dims: int
    widths: tuple[int, ...]  # channels of each level
    attends: tuple[bool, ...]  # whether a level has attention
    num_blocks: int
    emb_channels: int
    normalization: str
    heads: int
    dropout: float


def xavier_init(layer: Layer, gain: float = 1.0) -> Layer:
    """Uniform weights of variance 2 gain^2 / (fan_in + fan_out), bias 0: those of DDPM++."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class GroupNorm(nn.Module):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, mean and variance over a group of channels of one image.

    The number of groups is the largest, up to 32, for which they have equal size and at least 4 channels each. Half
    precision is computed in float32.

    Written out, because PyTorch's own has no forward derivative in the channels-last format nor, with weights, under
    torch.compile. First each channel is reduced, then each group, so that no copy in another memory format is made. A
    scale and a shift that follow cost nothing, since they are part of the same product.

    Args:
        channels: C, number of channels of x.
        eps: added to the variance.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        most = max(1, min(_MAX_GROUPS, channels // _MIN_CHANNELS))
        self.groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """x (B, C, *size) -> y * scale + shift, these (B, C) or left out."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        pixels = list(range(2, x.ndim))
        centred = wide - as_channels(self._of_group(wide.mean(pixels)), x)
        # The root of the sum of squares is one pass; squares as a tensor would be two, and kept for the gradient.
        norm: Tensor = torch.linalg.vector_norm(centred, dim=pixels)
        variance = self._of_group(norm * norm) / math.prod(x.shape[2:])
        factor, summand = torch.rsqrt(variance + self.eps) * self.weight, self.bias.expand(variance.shape)
        if scale is not None:
            factor, summand = factor * scale, summand * scale
        if shift is not None:
            summand = summand + shift
        return torch.addcmul(as_channels(summand, x), centred, as_channels(factor, x)).to(x.dtype)

    def _of_group(self, v: Tensor) -> Tensor:
        """(B, C), each number replaced by the mean over its group."""
        means = v.reshape(v.shape[0], self.groups, -1).mean(2)
        return means.repeat_interleave(v.shape[1] // self.groups, 1)


class Modulation(nn.Module):
    """h -> its group norm, modulated by the embedding of time and label.

    "double" (sCM, section 4.1):   y = norm(h) * pnorm(s) + pnorm(b)
    "adagn"  (EDM's other U-Net):  y = norm(h) * (1 + s) + b
    "shift"  (as published):       y = norm(h + b)

    Args:
        channels: C, number of channels of h.
        emb_channels: E, number of channels of the embedding.
        normalization: "double", "adagn" or "shift".
    """

    def __init__(self, channels: int, emb_channels: int, normalization: str) -> None:
        super().__init__()
        self.normalization = one_of("normalization", normalization, NORMALIZATIONS)
        self.norm = GroupNorm(channels)
        parts = 1 if normalization == "shift" else 2
        self.style = xavier_init(nn.Linear(emb_channels, parts * channels))
        if normalization == "double":
            with torch.no_grad():  # starts near the plain norm: around 0, the pixel norm of s would be noise
                self.style.bias[:channels] = 1.0

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        """h (B, C, *size), emb (B, E) -> (B, C, *size)."""
        style: Tensor = self.style(emb)
        if self.normalization == "shift":
            normed: Tensor = self.norm(h + as_channels(style, h))
            return normed
        style = style.reshape(h.shape[0], 2, h.shape[1])
        if self.normalization == "double":
            style = pixel_norm(style, dim=2)
        scale, shift = style.unbind(1)
        modulated: Tensor = self.norm(h, scale + 1 if self.normalization == "adagn" else scale, shift)
        return modulated


class Attention(nn.Module):
    """x -> sqrt(1/2) (x + attention(norm(x))) over all positions; the branch is initialised to zero."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.attention = SelfAttention(channels, heads, qk_norm=False)
        xavier_init(self.attention.qkv, gain=math.sqrt(0.2))  # small logits at first: EDM's choice

    def forward(self, x: Tensor) -> Tensor:
        return (x + over_positions(self.attention, self.norm(x))) * _SKIP_SCALE


class DDPMppBlock(nn.Module):
    """x -> sqrt(1/2) (skip(x) + conv(dropout(silu(modulation(conv(silu(norm(x))), emb))))), then attention.

    The size changes before the first convolution and in the shortcut. The shortcut has a 1x1
    convolution where size or channels change. The last convolution is initialised to zero.

    Args:
        c_in, c_out: numbers of input and output channels.
        plan: the settings that all blocks share.
        resample: keep, halve or double the size.
        attention: self-attention over all positions after the branch.
        joins: whether the input includes a skip connection.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        plan: DDPMppLayout,
        *,
        resample: Resample = "keep",
        attention: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.resample, self.joins = resample, joins
        conv = CONVS[plan.dims]
        self.norm = GroupNorm(c_in)
        self.conv_1 = xavier_init(conv(c_in, c_out, 3, padding=1))
        self.modulation = Modulation(c_out, plan.emb_channels, plan.normalization)
        self.dropout = Dropout(plan.dropout)
        self.conv_2 = zero_init(conv(c_out, c_out, 3, padding=1))
        same = c_in == c_out and resample == "keep"
        self.skip = nn.Identity() if same else xavier_init(conv(c_in, c_out, 1))
        self.attention = Attention(c_out, plan.heads) if attention else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.modulation(self.conv_1(resampled(F.silu(self.norm(x)), self.resample)), emb)
        shortcut: Tensor = self.skip(resampled(x, self.resample))
        y: Tensor = self.attention((shortcut + self.conv_2(self.dropout(F.silu(h)))) * _SKIP_SCALE)
        return y


class WaveEmbedding(nn.Module):
    """One embedding (B, E) of the time (B,), the labels (B,) and, with guidance_input, the guidance scale (B,).

    silu(linear(silu(linear(waves(t) + linear(sqrt(K) one_hot(label))))) + linear(waves(s))): the label is added to the
    sinusoids of the time, which have amplitude 1, as in EDM; the null label is a row of zeros. The guidance scale,
    which EDM does not have, is added after both layers; before them it is learned several times slower (docs/LOG.md).

    Args:
        channels: number of sinusoids, an even number.
        emb_channels: E.
        num_classes: K; 0 for none.
        time_embedding: "positional" or "fourier".
        fourier_scale: standard deviation of the frequencies of "fourier".
        guidance_input: whether it takes a guidance scale, see `layers.GuidanceEmbedding`.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        num_classes: int,
        time_embedding: str,
        fourier_scale: float,
        guidance_input: bool,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.time = time_features(time_embedding, channels, fourier_scale)
        self.label = xavier_init(nn.Linear(num_classes, channels)) if num_classes else None
        self.guidance = GuidanceEmbedding(channels, emb_channels) if guidance_input else None
        self.first = xavier_init(nn.Linear(channels, emb_channels))
        self.second = xavier_init(nn.Linear(emb_channels, emb_channels))

    def forward(self, t: Tensor, labels: Tensor | None, guidance: Tensor | None = None) -> Tensor:
        # Half precision cannot tell near times apart: the sinusoids are taken in the precision of t.
        check_conditions(labels, self.label, guidance, self.guidance)
        with without_autocast(t.device):
            waves = (self.time(t) * math.sqrt(0.5)).to(self.first.weight.dtype)
            if self.label is not None:
                waves = waves + self.label(one_hot(labels, waves, self.num_classes))
            emb: Tensor = self.second(F.silu(self.first(waves)))
            if self.guidance is not None:
                emb = emb + self.guidance(guidance)
            return F.silu(emb)
