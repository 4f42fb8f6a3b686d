"""Magnitude-preserving layers (EDM2, arXiv 2312.02696, appendix B).

The magnitude of a tensor is its root mean square. Inputs of magnitude 1 that are independent of each other give outputs
of magnitude 1, so a deep network needs no learned scales, biases or group norms. A weight is normalised twice: in
forward as a function of the stored weight, which makes its gradient orthogonal to it, and in place after each step of
the optimiser (`normalize_weights`), which keeps the effective learning rate from falling as the weight grows. Forward
itself changes no weights, so it can be differentiated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trigflow.networks.layers import (
    PositionalEmbedding,
    check_conditions,
    given_guidance,
    one_hot,
    time_features,
)
from trigflow.system.devices import without_autocast

# Root mean square of silu(x) for x ~ N(0, 1).
_SILU_MAGNITUDE = 0.596
EPS = 1e-4  # beside a root mean square
_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def unit_magnitude(x: Tensor, *dims: int) -> Tensor:
    """x / (rms(x) + 1e-4), the root mean square over the given dimensions; for activations EDM2's pixel norm.

    Computed by a norm, whose derivative at x = 0 is 0, in float32 at least, since it may overflow float16.
    """
    return (x / (_magnitude(x, dims) + EPS)).to(x.dtype)


def _magnitude(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Root mean square over the dimensions, which stay with one element."""
    count = math.prod([x.shape[dim] for dim in dims])  # a list: torch.compile follows no generator here
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=dtype)
    return norm / math.sqrt(count)


def mp_silu(x: Tensor) -> Tensor:
    """silu(x) / 0.596 (equation 81)."""
    return F.silu(x) / _SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """((1 - balance) a + balance b) / sqrt((1 - balance)^2 + balance^2) (equation 88)."""
    scale = 1 / math.hypot(1 - balance, balance)
    return a * ((1 - balance) * scale) + b * (balance * scale)


def mp_cat(a: Tensor, b: Tensor, balance: float) -> Tensor:
    """Channels of a (B, N_a, *size) and b (B, N_b, *size) as one tensor, b having the share `balance` (equation 103).

    sqrt((N_a + N_b) / ((1 - balance)^2 + balance^2)) [(1 - balance) / sqrt(N_a) a, balance / sqrt(N_b) b]: the
    contribution of each to the next convolution does not depend on its number of channels.
    """
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt(n_a + n_b) / math.hypot(1 - balance, balance)
    return torch.cat(
        [a * (scale * (1 - balance) / math.sqrt(n_a)), b * (scale * balance / math.sqrt(n_b))], dim=1
    )


class MPConv(nn.Module):
    """Convolution (stride 1, same size) or linear layer without bias, its weight normalised (equation 47).

    W_i = w_i / (rms(w_i) + eps) / sqrt(fan_in) for each output channel i, so that |W_i| = 1.

    Args:
        c_in, c_out: channels.
        kernel: odd edges, one for each spatial dimension; () for a linear layer on (B, C).
    """

    def __init__(self, c_in: int, c_out: int, kernel: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, *kernel))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """The output times gain, which is applied to the weight since that costs less."""
        # All factors in one: a large network at a small batch spends as long on a copy of its weight as on the product.
        factor = self.unit_factor() * (gain / math.sqrt(self.weight[0].numel()))
        weight = (self.weight * factor).to(self.weight.dtype)
        kernel = self.weight.shape[2:]
        if not kernel:
            return F.linear(x, weight)
        return _CONVOLUTIONS[len(kernel)](x, weight, padding=[edge // 2 for edge in kernel])

    def unit_factor(self) -> Tensor:
        """1 / (rms(w_i) + eps) of each output channel, (c_out, 1, ...)."""
        return 1 / (_magnitude(self.weight, tuple(range(1, self.weight.ndim))) + EPS)


@torch.no_grad()
def normalize_weights(module: nn.Module) -> None:
    """Forced weight normalisation (equation 66), in place: the weights of all MPConv get magnitude 1.

    The function that the module computes stays the same.
    """
    for layer in module.modules():
        if isinstance(layer, MPConv):
            layer.weight.mul_(layer.unit_factor())


class MPGuidance(nn.Module):
    """Adds a guidance scale s (B,) to the time embedding (B, E), preserving its magnitude.

    (emb + a) / sqrt(1 + mean(a^2)), a = W waves(s), the mean over the E channels. W is initialised to zero, which
    leaves emb unchanged, and the sum keeps its magnitude for any W. The norm of W is learned, so W is not normalised. A
    normalised W with a gain that starts at zero learned four times slower: Adam changes a gain by no more than the
    learning rate in each step.

    Args:
        channels: number of sinusoids, an even number.
        emb_channels: E.
    """

    def __init__(self, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.scale = PositionalEmbedding(channels, 1.0)
        self.weight = nn.Parameter(torch.zeros(emb_channels, channels))

    def forward(self, emb: Tensor, guidance: Tensor | None) -> Tensor:
        waves = self.scale(given_guidance(guidance)).to(self.weight.dtype)
        a = F.linear(waves, self.weight / math.sqrt(self.weight.shape[1]))
        return (emb + a) / (1 + a.square().mean(1, keepdim=True)).sqrt()


class MPEmbedding(nn.Module):
    """One embedding (B, E) of time and labels (B,): mp_silu(mp_sum(W_t waves(t), W_l sqrt(K) one_hot(label))).

    The null label is a row of zeros. With guidance_input a guidance scale (B,) is added to the time, see `MPGuidance`.

    Args:
        channels: number of sinusoids, an even number.
        emb_channels: E.
        num_classes: K; 0 for none.
        label_balance: share of the label in the sum.
        time_embedding: "positional" or "fourier".
        fourier_scale: standard deviation of the frequencies of "fourier".
        guidance_input: whether it takes a guidance scale.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        num_classes: int,
        label_balance: float,
        time_embedding: str,
        fourier_scale: float,
        guidance_input: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.label_balance = label_balance
        self.time = time_features(time_embedding, channels, fourier_scale)
        self.linear = MPConv(channels, emb_channels)
        self.label = MPConv(num_classes, emb_channels) if num_classes else None
        self.guidance = MPGuidance(channels, emb_channels) if guidance_input else None

    def forward(self, t: Tensor, labels: Tensor | None, guidance: Tensor | None = None) -> Tensor:
        # Half precision cannot tell near times apart: the sinusoids are taken in the precision of t.
        check_conditions(labels, self.label, guidance, self.guidance)
        with without_autocast(t.device):
            emb: Tensor = self.linear(self.time(t).to(self.linear.weight.dtype))
            if self.guidance is not None:
                emb = self.guidance(emb, guidance)
            if self.label is not None:
                of_label = self.label(one_hot(labels, emb, self.num_classes))
                emb = mp_sum(emb, of_label, self.label_balance)
            return mp_silu(emb)
