"""The layers of the networks: norms, time and label embeddings, convolutions by dimension.

Each is a plain composition of differentiable functions, without in-place writes, changes of weights in forward, or
batch statistics. So all of them can be differentiated in every mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.dropout import Dropout as Dropout  # a piece like the others
from trigflow.system.devices import without_autocast
from trigflow.system.errors import UserError, one_of

Layer = TypeVar("Layer", bound=nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)

CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
AVG_POOLS: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
# Channels last makes convolutions and sums over channels faster on CPU and GPU; 1-D has no such format.
MEMORY_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


# ----------------------------------------------------------------------------------------------------------------------
# Options, checked where they enter.


def positive(**numbers: int) -> None:
    """Raise a UserError unless each of the named numbers is an integer of at least 1."""
    for name, number in numbers.items():
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise UserError(f"{name} must be an integer of at least 1, not {number!r}")


def share(**numbers: float) -> None:
    """Raise a UserError unless each of the named numbers lies in [0, 1]."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise UserError(f"{name} must lie between 0 and 1, not {number}")


def spatial_dims(network: str, data_shape: tuple[int, ...]) -> int:
    """The number of spatial dimensions of (C, *size): 1, 2 or 3; else a UserError."""
    dims = len(data_shape) - 1
    if dims not in CONVS:
        raise UserError(
            f"network '{network}' takes data of shape (channels, 1 to 3 sizes), not {tuple(data_shape)}"
        )
    positive(**{f"data_shape[{axis}]": size for axis, size in enumerate(data_shape)})
    return dims


def halving_levels(
    network: str,
    data_shape: tuple[int, ...],
    channel_mult: Sequence[int],
    attention_levels: Iterable[int],
    patch: int | None = None,
) -> None:
    """Raise a UserError unless the sizes halve evenly from level to level, and the levels with attention exist.

    The levels are those of channel_mult, whose entries must be positive.
    """
    positive(**{f"channel_mult[{level}]": mult for level, mult in enumerate(channel_mult)})
    levels = len(channel_mult)
    factor = (patch or 1) * 2 ** max(levels - 1, 0)
    if levels < 1 or any(size % factor for size in data_shape[1:]):
        of_patch, or_patch = ("", "") if patch is None else (f" of patch {patch}", " or patch")
        raise UserError(
            f"network '{network}'{of_patch} with {levels} levels in channel_mult needs at least one and sizes "
            f"divisible by {factor}, not {tuple(data_shape[1:])}; change the length of channel_mult{or_patch}"
        )
    for level in attention_levels:
        if level not in range(levels):
            raise UserError(
                f"attention_levels: there is no level {level}; this {network} has levels 0 to {levels - 1}"
            )


# ----------------------------------------------------------------------------------------------------------------------
# Initial values: activations start with unit variance, the last layer of each branch with zero.


def unit_init(layer: Layer) -> Layer:
    """Weights ~ N(0, 1/fan_in), so that inputs of unit variance give outputs of unit variance; bias 0."""
    nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def zero_init(layer: Layer) -> Layer:
    """Weights and bias 0: a residual branch that ends with this layer is zero initially, a network has F = 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


# ----------------------------------------------------------------------------------------------------------------------
# Norms.


def as_channels(v: Tensor, x: Tensor) -> Tensor:
    """(B, C) as (B, C, 1, ...), for x (B, C, *size)."""
    return v.reshape(*v.shape, *(1,) * (x.ndim - 2))


def pixel_norm(x: Tensor, dim: int = 1, eps: float = 1e-4) -> Tensor:
    """x / sqrt(mean(x^2) + eps), the mean over one dimension (the channels of each pixel; PGGAN, EDM2).

    Written out, because the affine norms of PyTorch have no forward derivative under torch.compile; x * x because the
    backward pass of square() is a slow power.
    """
    channels = x.shape[dim]
    # sqrt(C) stays on the small tensor: x / sqrt(mean + eps) = x * sqrt(C) / sqrt(sum + C eps)
    inverse = torch.rsqrt(_sum_of_squares(x, dim) + channels * eps) * math.sqrt(channels)
    return (x * inverse).to(x.dtype)


def _sum_of_squares(x: Tensor, dim: int) -> Tensor:
    """Over one dimension, which stays. Of float16 in float32: 64 channels of 32 sum to what float16 cannot hold, and
    x / sqrt(inf) would be a silent 0. By the norm there, which keeps no float32 copy of x for the backward pass.
    """
    if x.dtype != torch.float16:
        return (x * x).sum(dim, keepdim=True)
    with without_autocast(x.device):
        norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
        return norm * norm


NORMALIZATIONS = ("double", "adagn")


class ModulatedNorm(nn.Module):
    """Pixel norm whose scale and shift are linear functions of the embedding of time and label.

    "double" (sCM, section 4.1):   y = pnorm(x) * pnorm(s) + pnorm(b)
    "adagn"  (the usual form):     y = pnorm(x) * (1 + s) + b

    Args:
        channels: C, number of channels of x.
        emb_channels: E, number of channels of the embedding.
        normalization: "double" or "adagn".
        dim: the channel dimension of x: 1 for (B, C, *size), -1 for tokens (B, N, C).
    """

    def __init__(self, channels: int, emb_channels: int, normalization: str, dim: int = 1) -> None:
        super().__init__()
        self.normalization = one_of("normalization", normalization, NORMALIZATIONS)
        self.channels = channels
        self.dim = dim
        self.style = nn.Linear(emb_channels, 2 * channels)
        self._init_style()

    def _init_style(self) -> None:
        """Both kinds start near the plain norm: s around 1 and b around 0, which for "double" must not be nothing."""
        if self.normalization == "adagn":
            zero_init(self.style)
            return
        unit_init(self.style)
        with torch.no_grad():
            self.style.bias[: self.channels] = 1.0

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        style: Tensor = self.style(emb).reshape(emb.shape[0], 2, self.channels)
        if self.normalization == "double":
            style = pixel_norm(style, dim=2)
        scale, shift = style.unbind(1)
        if self.normalization == "adagn":
            scale = scale + 1
        shape = self._broadcast_shape(x)
        return pixel_norm(x, self.dim) * scale.reshape(shape) + shift.reshape(shape)

    def _broadcast_shape(self, x: Tensor) -> tuple[int, ...]:
        """(B, C, 1, ...) or (B, 1, ..., C)."""
        ones = (1,) * (x.ndim - 2)
        return (x.shape[0], self.channels, *ones) if self.dim == 1 else (x.shape[0], *ones, self.channels)


# ----------------------------------------------------------------------------------------------------------------------
# Embeddings of time, label and guidance.


class PositionalEmbedding(nn.Module):
    """sqrt(2) * [cos(f t), sin(f t)] with frequencies f from 1 down to almost 1/10000.

    All frequencies are at most 1, so the derivative with respect to t in [0, pi/2] is small, as sCM needs
    (section 4.1, there called Fourier scale 0.02).
    """

    frequencies: Tensor

    def __init__(self, channels: int, fourier_scale: float) -> None:
        super().__init__()
        half = channels // 2
        frequencies = 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        angle = t[:, None] * self.frequencies
        return torch.cat([torch.cos(angle), torch.sin(angle)], dim=1) * math.sqrt(2)


class FourierEmbedding(nn.Module):
    """sqrt(2) * cos(2 pi (f t + phase)) with random f ~ N(0, fourier_scale^2), drawn once and stored with the weights.

    EDM's embedding has scale 16, and a derivative so large that consistency training becomes unstable (sCM, figure 4).
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, channels: int, fourier_scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(channels) * 2 * math.pi * fourier_scale)
        self.register_buffer("phases", torch.rand(channels) * 2 * math.pi)

    def forward(self, t: Tensor) -> Tensor:
        return torch.cos(t[:, None] * self.frequencies + self.phases) * math.sqrt(2)


TIME_EMBEDDINGS: dict[str, type[PositionalEmbedding] | type[FourierEmbedding]] = {
    "positional": PositionalEmbedding,
    "fourier": FourierEmbedding,
}


def time_features(
    time_embedding: str, channels: int, fourier_scale: float
) -> PositionalEmbedding | FourierEmbedding:
    """The time embedding of this name, (B,) -> (B, channels); a UserError for an unknown name or odd channels."""
    one_of("time_embedding", time_embedding, TIME_EMBEDDINGS)
    if channels % 2:
        raise UserError(f"the time embedding needs an even number of channels, not {channels}")
    return TIME_EMBEDDINGS[time_embedding](channels, fourier_scale)


class GuidanceEmbedding(nn.Module):
    """The term (B, E) that a guidance scale (B,) adds to the time embedding; zero initially.

    Positional features and one linear layer (sCM, appendix G). The layer is initialised to zero, so that a student with
    it equals its teacher without it; its gradient is not zero, so it learns from the first step on.

    Args:
        channels: number of sinusoids, an even number.
        emb_channels: E.
    """

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.scale = PositionalEmbedding(channels, 1.0)
        self.linear = zero_init(nn.Linear(channels, emb_channels))

    def forward(self, guidance: Tensor | None) -> Tensor:
        waves = self.scale(given_guidance(guidance))
        summand: Tensor = self.linear(waves.to(self.linear.weight.dtype))
        return summand


class Embedding(nn.Module):
    """One embedding (B, E) of time (B,), labels (B,) and, with guidance_input, guidance scale (B,); after a silu.

    Args:
        channels: number of sinusoids, an even number.
        emb_channels: E.
        num_classes: 0 for none; else row `num_classes` of the label table is the null label.
        time_embedding: "positional" or "fourier".
        fourier_scale: standard deviation of the frequencies of "fourier".
        guidance_input: whether it takes a guidance scale, see `GuidanceEmbedding`.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        num_classes: int,
        time_embedding: str,
        fourier_scale: float,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.time = time_features(time_embedding, channels, fourier_scale)
        self.first = unit_init(nn.Linear(channels, emb_channels))
        self.second = unit_init(nn.Linear(emb_channels, emb_channels))
        self.label = nn.Embedding(num_classes + 1, emb_channels) if num_classes else None
        self.guidance = GuidanceEmbedding(channels, emb_channels) if guidance_input else None

    def forward(self, t: Tensor, labels: Tensor | None, guidance: Tensor | None = None) -> Tensor:
        # The sinusoids are taken in the precision of t; only their values are rounded to the network's, and
        # autocast does not round them at all: half precision cannot tell near times apart.
        check_conditions(labels, self.label, guidance, self.guidance)
        with without_autocast(t.device):
            waves = self.time(t).to(self.first.weight.dtype)
            emb = self.second(F.silu(self.first(waves)))
            if self.guidance is not None:
                emb = emb + self.guidance(guidance)
            if self.label is not None:
                emb = emb + self.label(or_null(labels, emb, self.num_classes))
            return F.silu(emb)


def or_null(labels: Tensor | None, emb: Tensor, num_classes: int) -> Tensor:
    """The labels (B,); if None, the null label for each row of emb (B, E)."""
    if labels is not None:
        return labels
    return torch.full((emb.shape[0],), num_classes, dtype=torch.int64, device=emb.device)


def one_hot(labels: Tensor | None, emb: Tensor, num_classes: int) -> Tensor:
    """sqrt(K) one_hot(label), (B, K) in the type of emb (B, E); a row of zeros for the null label, or where none is."""
    labels = or_null(labels, emb, num_classes)
    return F.one_hot(labels, num_classes + 1)[:, :-1].to(emb.dtype) * math.sqrt(num_classes)


def check_conditions(
    labels: Tensor | None, of_labels: nn.Module | None, guidance: Tensor | None, of_guidance: nn.Module | None
) -> None:
    """Raise a UserError where labels or a guidance scale are given, and the network has no module for them."""
    if labels is not None and of_labels is None:
        raise UserError("labels were given to a network without classes (num_classes=0); remove them")
    if guidance is not None and of_guidance is None:
        raise UserError("guidance was given to a network that takes none (guidance_input=false); remove it")


def given_guidance(guidance: Tensor | None) -> Tensor:
    """The scale (B,) of a network that takes it; a UserError where it is missing."""
    if guidance is None:
        raise UserError(
            "the network takes the guidance scale (guidance_input=true): give guidance, a number for each sample"
        )
    return guidance
