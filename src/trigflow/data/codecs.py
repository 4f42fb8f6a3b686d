"""Data as it is stored <-> x_0 with standard deviation sigma_data. The codec is saved with the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol, cast

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trigflow.system.config import STRICT_KEYS, to_json, validate
from trigflow.system.devices import sent
from trigflow.system.errors import UserError, one_of

Positive = Annotated[float, Field(gt=0)]

MOST_FLOATS = 2**28  # pixels: more are counted by pixel value, since a float64 copy of them would not fit
_CHUNK = 2**22  # pixels
_HUGE = 1e30  # beyond it, float32 overflows soon


class Codec(Protocol):
    """Both directions, and the numbers that they need."""

    @property
    def sigma_data(self) -> float:
        """Standard deviation of x_0."""

    def encode(self, stored: Tensor) -> Tensor:
        """Stored data (N, ...) -> x_0 (N, ...) float32."""

    def decode(self, x_0: Tensor) -> Tensor:
        """x_0 (N, ...) -> data as stored (N, ...)."""


def _along_channels(values: tuple[float, ...], x: Tensor) -> Tensor:
    """One value for all channels or one for each, in the type of x, ready to broadcast over (N, C, ...)."""
    return sent(torch.tensor(values, dtype=x.dtype), x.device).reshape(1, -1, *[1] * (x.ndim - 2))


def _measured_std(std: Tensor) -> tuple[float, ...]:
    if not bool((std > 0).all()):
        raise UserError(
            "the data does not vary (a channel has the standard deviation 0): there is nothing to learn"
        )
    return tuple(std.tolist())


def count_pixel_values(images: Tensor) -> list[int]:
    """How often each of the 256 pixel values occurs in uint8 images (N, ...), which may be mapped from a file."""
    rows = max(1, _CHUNK // max(1, images[:1].numel()))
    counts = torch.zeros(256, dtype=torch.int64)
    for part in torch.split(images, rows):
        counts += torch.bincount(part.cpu().flatten(), minlength=256)
    levels: list[int] = counts.tolist()
    return levels


@dataclass(frozen=True, config=STRICT_KEYS)
class ImageCodec:
    """uint8 images (N, C, ...) in 0..255: x_0 = sigma_data (image - mean) / std.

    Args:
        mean, std: in pixel values, one for each channel (or one for all).
        sigma_data: standard deviation of x_0.
    """

    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    sigma_data: Positive = 0.5

    @classmethod
    def measure(cls, images: Tensor, sigma_data: float = 0.5) -> ImageCodec:
        """Mean and standard deviation of all pixels together (uint8 images (N, C, ...))."""
        if images.numel() > MOST_FLOATS:
            return cls.from_pixel_counts(count_pixel_values(images), sigma_data)
        pixels = images.double()
        return cls((pixels.mean().item(),), _measured_std(pixels.std(correction=0)[None]), sigma_data)

    @classmethod
    def from_pixel_counts(cls, levels: Sequence[int], sigma_data: float = 0.5) -> ImageCodec:
        """The same from how often each pixel value 0..255 occurs."""
        counts, grey = torch.tensor(levels, dtype=torch.float64), torch.arange(256, dtype=torch.float64)
        mean = (counts * grey).sum() / counts.sum()
        variance = (counts * (grey - mean).square()).sum() / counts.sum()
        return cls((mean.item(),), _measured_std(variance.sqrt()[None]), sigma_data)

    def encode(self, stored: Tensor) -> Tensor:
        """(N, C, ...) uint8 -> float32."""
        x = stored.float()
        return (x - _along_channels(self.mean, x)) * (self.sigma_data / _along_channels(self.std, x))

    def decode(self, x_0: Tensor) -> Tensor:
        """(N, C, ...) float -> uint8, rounded to the nearest pixel value and clipped to 0..255."""
        x = x_0.float()
        grey = x * (_along_channels(self.std, x) / self.sigma_data) + _along_channels(self.mean, x)
        return grey.round().clamp(0, 255).to(torch.uint8)


@dataclass(frozen=True, config=STRICT_KEYS)
class VectorCodec:
    """Vectors (N, D): x_0 = sigma_data (vector - mean) / std, the mean of each element, std of all or each."""

    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    sigma_data: Positive = 0.5

    @classmethod
    def measure(cls, vectors: Tensor, sigma_data: float = 0.5) -> VectorCodec:
        """Mean of each element, and one standard deviation for all, so that the shape of the data is kept."""
        centred = vectors.double() - vectors.double().mean(0)
        std = _measured_std(centred.square().mean().sqrt()[None])
        return cls(tuple(vectors.double().mean(0).tolist()), std, sigma_data)

    def encode(self, stored: Tensor) -> Tensor:
        """(N, D) float -> float32."""
        x = stored.float()
        return (x - _along_channels(self.mean, x)) * (self.sigma_data / _along_channels(self.std, x))

    def decode(self, x_0: Tensor) -> Tensor:
        """(N, D) float -> float32."""
        x = x_0.float()
        return x * (_along_channels(self.std, x) / self.sigma_data) + _along_channels(self.mean, x)


@dataclass(frozen=True, config=STRICT_KEYS)
class IdentityCodec:
    """Data that has the standard deviation sigma_data already."""

    sigma_data: Positive = 0.5

    def encode(self, stored: Tensor) -> Tensor:
        return stored.float()

    def decode(self, x_0: Tensor) -> Tensor:
        return x_0.float()


@dataclass(frozen=True, config=STRICT_KEYS)
class LatentCodec:
    """Latents (N, C, H, W) of an autoencoder as it gives them: x_0 = sigma_data (latent - mean) / std.

    Decoding leads back to such latents; the autoencoder that makes images of them lies beside the model, and the codec
    knows it by the digest of its weights (`trigflow.data.autoencoder`).

    Args:
        mean, std: of the latents, one for each channel.
        autoencoder: SHA-256 of the file of its weights.
        source: where it came from, a name on the hub or a path: for people, and for messages.
        factor: pixels along the side of an image for one of its latent.
        image_channels: of the images, 1 or 3.
        sigma_data: standard deviation of x_0.
    """

    mean: tuple[float, ...]
    std: tuple[Positive, ...]
    autoencoder: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    source: str
    factor: Annotated[int, Field(ge=1, le=1024)]
    image_channels: Literal[1, 3] = 3
    sigma_data: Positive = 0.5

    def encode(self, stored: Tensor) -> Tensor:
        """(N, C, H, W) float of any precision -> float32, or float64 where it is given."""
        x = stored.to(torch.promote_types(stored.dtype, torch.float32))
        return (x - _along_channels(self.mean, x)) * (self.sigma_data / _along_channels(self.std, x))

    def decode(self, x_0: Tensor) -> Tensor:
        """(N, C, H, W) float -> latents in float32, or in float64 where it is given."""
        x = x_0.to(torch.promote_types(x_0.dtype, torch.float32))
        return x * (_along_channels(self.std, x) / self.sigma_data) + _along_channels(self.mean, x)

    def image_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the image of one latent (C, H, W)."""
        return (self.image_channels, *(self.factor * side for side in data_shape[1:]))


CODECS: dict[str, type[ImageCodec] | type[VectorCodec] | type[IdentityCodec] | type[LatentCodec]] = {
    "image": ImageCodec,
    "vector": VectorCodec,
    "identity": IdentityCodec,
    "latent": LatentCodec,
}


def sample_shape(codec: Codec, data_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one sample as a user sees it: an image for a latent, else that of the data."""
    return codec.image_shape(data_shape) if isinstance(codec, LatentCodec) else data_shape


def codec_to_json(codec: Codec) -> dict[str, Any]:
    """{"name": ..., and the codec's fields}."""
    name = next(name for name, kind in CODECS.items() if type(codec) is kind)
    return {"name": name} | to_json(codec)


def codec_from_json(data: Mapping[str, Any], where: str = "codec") -> Codec:
    """The inverse of codec_to_json.

    Args:
        data: name and fields.
        where: they stand, for errors.

    Raises:
        UserError: an unknown codec, or fields that do not fit it.
    """
    fields = dict(data)
    name = str(fields.pop("name", ""))
    kind = CODECS[one_of("codec", name, CODECS, where=f"{where}: ")]
    return cast(Codec, validate(kind, fields, where))


def check_codec(codec: Codec, data_shape: tuple[int, ...], sigma_data: float, where: str) -> None:
    """Whether a codec that was read from a file is one of such data.

    Args:
        codec: as the file has it.
        data_shape: of one sample.
        sigma_data: of the preconditioning.
        where: the codec stands, for errors.

    Raises:
        UserError: it is of data of another form, or its numbers are none that float32 can compute with.
    """
    if not math.isclose(codec.sigma_data, sigma_data, rel_tol=1e-6):
        raise UserError(
            f"{where}.sigma_data = {codec.sigma_data:g}: should be precond.sigma_data, {sigma_data:g}"
        )
    if not isinstance(codec, ImageCodec | VectorCodec | LatentCodec):
        return
    dims = 1 if isinstance(codec, VectorCodec) else 3
    if len(data_shape) != dims:
        raise UserError(
            f"{where}.name: this codec is of data in {dims} dimensions, and data_shape is {data_shape}"
        )
    for name, values in (("mean", codec.mean), ("std", codec.std)):
        if len(values) not in (1, data_shape[0]):
            raise UserError(
                f"{where}.{name}: {len(values)} numbers for data of shape {data_shape}: should be one for each channel"
            )
        if worst := [one for one in values if abs(one) > _HUGE or (name == "std" and one < 1 / _HUGE)]:
            raise UserError(
                f"{where}.{name} = {worst[0]:g}: should be a number that float32 can compute with"
            )
