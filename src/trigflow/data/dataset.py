"""A data set in memory, and the order in which a run sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from trigflow.core.oracles import Oracle
from trigflow.core.randomness import SampleRandom
from trigflow.data.autoencoder import Decoder
from trigflow.data.codecs import Codec, sample_shape
from trigflow.data.labels import Labels
from trigflow.system.devices import sent
from trigflow.system.errors import UserError


@dataclass(frozen=True)
class Stored:
    """Some samples as they are stored: `data`, `spread` and `labels` of a Dataset, (B, ...) each, on one device."""

    data: Tensor
    spread: Tensor | None = None
    labels: Tensor | None = None

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Their memory is kept until what the stream has to do by then is done, whichever stream they come from."""
        for values in (self.data, self.spread, self.labels):
            if values is not None:
                values.record_stream(stream)


@dataclass(frozen=True)
class Dataset:
    """Data as it is stored.

    Args:
        name: for reports.
        data: (N, C, H, W) uint8 images or latents of floats, or (N, D) float32 vectors.
        labels: (N,) int64 in 0..num_classes-1, or None.
        num_classes: 0 without labels.
        codec: between `data` and x_0.
        oracle: the distribution that x_0 comes from, where it is known in closed form.
        mapped: `data` lies in a file: it is not to be copied as a whole.
        spread: of the shape of `data`, where that holds means of normal distributions: their standard deviations. Then
            each look at a sample draws it anew.
        decoder: makes images of latents; None for other data.
        flip: a training sees each image flipped left-right with probability 1/2, see `flipped`.
        notes: lines on what was done to the data or left out when it was read.
        classes: names of the classes, () where they have none.
        labels_from: where the labels are from; without labels, why there are none.

    Raises:
        UserError: no data, or labels that do not fit it.
    """

    name: str
    data: Tensor
    labels: Tensor | None
    num_classes: int
    codec: Codec
    oracle: Oracle | None = None
    mapped: bool = False
    spread: Tensor | None = None
    decoder: Decoder | None = None
    flip: bool = False
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    labels_from: str = ""

    def __post_init__(self) -> None:
        if len(self.data) == 0:
            raise UserError(f"the data set '{self.name}' is empty")
        if self.labels is None:
            return
        if self.labels.shape != (len(self.data),):
            shape = tuple(self.labels.shape)
            raise UserError(f"{self.name}: {len(self.data)} samples, but labels of shape {shape}")
        if self.labels.dtype == torch.bool or self.labels.dtype.is_floating_point:
            raise UserError(f"{self.name}: labels must be whole numbers, int64, not {self.labels.dtype}")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < self.num_classes:
            raise UserError(f"{self.name}: labels must lie in 0..{self.num_classes - 1}")
        if self.classes and len(self.classes) != self.num_classes:
            raise UserError(f"{self.name}: {self.num_classes} classes, but {len(self.classes)} names of them")

    @property
    def labelling(self) -> Labels:
        """Its labels, with the names of their classes and where they are from."""
        return Labels(self.labels, self.num_classes, self.classes, self.labels_from)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Shape of one sample as it is stored."""
        return tuple(self.data.shape[1:])

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample, of a latent that of its decoded image."""
        return sample_shape(self.codec, self.data_shape)

    def to(self, device: torch.device) -> Dataset:
        """The same on a device; data that is mapped stays in its file."""
        stays = self.mapped
        return replace(
            self,
            data=self.data if stays else self.data.to(device),
            labels=None if self.labels is None else self.labels.to(device),
            spread=self.spread if stays or self.spread is None else self.spread.to(device),
            decoder=self.decoder and self.decoder.on(device),
        )

    def taken(self, chosen: Tensor, device: torch.device) -> Stored:
        """Some rows on a device: selected there if they lie there, else on the CPU, and moved without waiting.

        Args:
            chosen: (B,) int64 on the CPU, the rows.
            device: where they are wanted.
        """
        there = sent(chosen, device)

        def select(values: Tensor) -> Tensor:
            return values[there] if values.device == there.device else sent(values[chosen], device)

        spread, labels = (
            values if values is None else select(values) for values in (self.spread, self.labels)
        )
        return Stored(select(self.data), spread, labels)

    def encode(self, stored: Stored, random: SampleRandom | None = None) -> Tensor:
        """x_0 (B, ...) float32 of what was taken, on its device.

        Args:
            stored: some rows.
            random: of the images of the run, on the device: draws what has a spread; without it, that is its mean.
        """
        data = stored.data
        if stored.spread is not None and random is not None:
            data = data.float() + stored.spread.float() * random.normal("posterior", self.data_shape)
        return self.codec.encode(data)

    def encoded(self, chosen: Tensor, device: torch.device, random: SampleRandom | None = None) -> Tensor:
        """x_0 (B, ...) float32 of some rows: `taken`, then `encode`."""
        return self.encode(self.taken(chosen, device), random)

    def samples(self, stored: Tensor) -> Tensor:
        """Some of `data` (B, ...); latents are decoded to images."""
        return stored if self.decoder is None else self.decoder.images(stored)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> Tensor:
    """The order of one pass through `count` samples: a pure function, so that resuming needs no state."""
    keys = SampleRandom(seed, torch.tensor([epoch])).uniform("data order", (count,), torch.float64)
    return keys[0].argsort(stable=True)


def rows(seed: int, first: int, count: int, size: int) -> Tensor:
    """Which samples are the images first .. first + count - 1 of a run.

    Each pass through the data has its own permutation, made from (seed, number of the pass).

    Args:
        seed: of the run.
        first: number of the first image in the run, >= 0.
        count: of images.
        size: of the data set.

    Returns:
        (count,) int64 in 0..size-1.
    """
    parts = []
    while count > 0:
        epoch, offset = divmod(first, size)
        taken = min(count, size - offset)
        parts.append(_permutation(seed, epoch, size)[offset : offset + taken])
        first, count = first + taken, count - taken
    return torch.cat(parts)


def flipped(x_0: Tensor, random: SampleRandom) -> Tensor:
    """Each image (B, C, H, W) left-right or as it is, with probability 1/2: EDM's flips."""
    chosen = random.uniform("flip", (1, 1, 1)) < 0.5
    return torch.where(chosen, x_0.flip(-1), x_0)


def labels_like(dataset: Dataset, num: int, seed: int) -> Tensor | None:
    """(num,) labels drawn from the data's own, int64; None for data without."""
    if dataset.labels is None:
        return None
    place = SampleRandom(seed, torch.arange(num)).uniform("labels", dtype=torch.float64)
    return dataset.labels[(place * len(dataset.labels)).long()]
