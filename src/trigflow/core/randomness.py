"""Random numbers as a pure function of (seed, image number, stream, element).

A run must be the same on one process and on eight, and image 1234 the same at any batch size. So nothing is drawn from
a generator with a hidden state: each number is a hash of its coordinates (the output function of SplitMix64; Steele,
Lea and Flood, "Fast splittable pseudorandom number generators", 2014), computed on the device that needs it.
"""

from __future__ import annotations

import math
import operator
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch stores; its arithmetic wraps around, as the hash requires."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)
_MASK = (1 << 64) - 1


def _shift_right(value: Tensor, bits: int) -> Tensor:
    """Logical shift (torch's own keeps the sign)."""
    return (value >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(value: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit integers in which each input bit flips half of the output bits.

    It works in place, on a tensor that nobody else needs: sampling in one step spends a tenth of its time here.
    """
    value.bitwise_xor_(_shift_right(value, 30)).mul_(_MIX_1)
    value.bitwise_xor_(_shift_right(value, 27)).mul_(_MIX_2)
    return value.bitwise_xor_(_shift_right(value, 31))


def _mix_number(value: int) -> int:
    """The same for one number, an unsigned int."""
    value = (value ^ value >> 30) * _MIX_1 & _MASK
    value = (value ^ value >> 27) * _MIX_2 & _MASK
    return value ^ value >> 31


def hash_uniform(keys: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform numbers in [0, 1), one stream of prod(shape) elements for each key.

    Args:
        keys: (B,) int64.
        shape: shape of one sample.
        dtype: float32 (24 random bits) or float64 (53 random bits).

    Returns:
        (B, *shape) of the given dtype.
    """
    counter = torch.arange(1, math.prod(shape) + 1, device=keys.device, dtype=torch.int64)
    bits = _mix(keys[:, None] + counter * _GOLDEN)
    digits = 53 if dtype == torch.float64 else 24
    return _shift_right(bits, 64 - digits).to(dtype).mul_(2.0**-digits).reshape(keys.shape[0], *shape)


@dataclass(frozen=True)
class SampleRandom:
    """The random numbers of a batch of images.

    Args:
        seed: seed of the run, any int in [-2^95, 2^95); each gives different numbers.
        index: (B,) int64, the number of each image in the run; each gives different numbers.
    """

    seed: int
    index: Tensor

    def keys(self, stream: str) -> Tensor:
        """(B,) int64, one key for each image, different for each named stream; on the CPU where the device is MPS."""
        index = self.index.cpu() if self.index.device.type == "mps" else self.index  # MPS has no float64
        seed = operator.index(self.seed)  # NumPy's integers are too short for what follows
        start = _mix_number((seed * 0x100000000 + zlib.crc32(stream.encode())) & _MASK)
        if high := seed >> 32:  # the first 64 bits hold the low word only
            start = _mix_number(start + high * _GOLDEN & _MASK)
        return _mix(index * _GOLDEN + _signed(start))

    def uniform(self, stream: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) uniform in [0, 1), on the device of the index."""
        return hash_uniform(self.keys(stream), shape, dtype).to(self.index.device)

    def normal(self, stream: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) standard normal, by the Box-Muller transform in float64."""
        radius, angle = hash_uniform(self.keys(stream), (2, *shape), torch.float64).unbind(1)
        normal = torch.log1p(-radius).mul_(-2).sqrt_().mul_(torch.cos(2 * math.pi * angle))
        return normal.to(dtype).to(self.index.device)
