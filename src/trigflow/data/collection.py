"""Images that are still encoded, one after the other; and all of them as a data set."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.data.cache import Counts, cache_counts, cache_key, cached_counts, cached_images, is_large
from trigflow.data.codecs import ImageCodec, count_pixel_values
from trigflow.data.dataset import Dataset
from trigflow.data.formats.background import Background
from trigflow.data.formats.picture import DamagedPicture
from trigflow.data.labels import Labels
from trigflow.system.errors import UserError, printable
from trigflow.system.files import must_be_regular

Read = Callable[[], np.ndarray]


@dataclass(frozen=True)
class Collection:
    """Images of any sizes, of which one at a time is decoded.

    Args:
        name: for reports.
        source: where they are, for errors.
        count: of images, >= 1.
        entries: begins at the first image: a name, and a function that decodes the image (1 or 3, H, W) uint8 or raises
            DamagedPicture. It must be called before the next entry is asked for.
        labels: of the images, in their order.
        files: that the images come from.
        pixels: of images that are in memory, None for others.
        mapped: they lie in a file.
        background: of transparent pixels, which counts them; None where there are none.
        left_out: a line on files that are not among them, and why; "" where there are none.
    """

    name: str
    source: str
    count: int
    entries: Callable[[], Iterator[tuple[str, Read]]]
    labels: Labels
    files: tuple[Path, ...] = ()
    pixels: Tensor | None = None
    mapped: bool = False
    background: Background | None = None
    left_out: str = ""

    @property
    def notes(self) -> tuple[str, ...]:
        """What is to be said of them, a line each; of transparent pixels, once all have been looked at."""
        lines = (self.left_out, self.background.note if self.background else "")
        return tuple(line for line in lines if line)

    @property
    def identity(self) -> dict[str, Any]:
        """What tells whether they are the same images as before, as JSON data."""
        content = b"" if self.pixels is None else self.pixels.cpu().contiguous().numpy().data
        files = cache_key(self.files, [hashlib.sha256(content).hexdigest()])
        colour = {"background": self.background.name} if self.background else {}
        return {"source": self.source, "count": self.count, "files": files} | colour

    def looked_at(self, read: Read) -> tuple[np.ndarray, bool]:
        """An image, and whether it had transparent pixels."""
        before = self.background and self.background.pictures
        image = read()
        return image, (self.background and self.background.pictures) != before

    def count_transparent(self, pictures: int) -> None:
        """So many had transparent pixels, among them those that an earlier process looked at."""
        if self.background:
            self.background.pictures = pictures

    def walk(self, description: str, progress: bool) -> Iterable[tuple[str, Read]]:
        """All entries, under a bar if it takes longer than a second."""
        bar: Iterable[tuple[str, Read]] = tqdm(
            self.entries(), printable(description), self.count, unit="img", delay=1, disable=not progress
        )
        return bar


def gathered(collection: Collection, sigma_data: float, progress: bool = True) -> Dataset:
    """All images as a data set; one above cache.MAPPED_BYTES (256 MiB) is decoded into a file and mapped.

    Raises:
        UserError: an image is damaged or of another size than the first, all pixels have one value, or the cache
            cannot be written.
    """
    if collection.pixels is not None:
        return _dataset(collection, collection.pixels, sigma_data)
    background = collection.background or Background()
    entries = collection.entries()  # named, so that it and its file stay open until the first image is read
    name, read = next(entries)
    first = read()
    background.pictures = 0  # the first is read again
    shape = (collection.count, *first.shape)
    images = _same_size(collection, name, first, progress)
    if not is_large(float(np.prod(shape, dtype=float))):
        data = np.empty(shape, np.uint8)
        for row, image in enumerate(images):
            data[row] = image
        return _dataset(collection, torch.from_numpy(data), sigma_data)
    key = cache_key(collection.files, [collection.source, collection.count, background.name])
    counts = cached_counts(key, int(np.prod(shape)))
    pixels = torch.from_numpy(cached_images(key, shape, images, anew=counts is None))
    if counts is None:
        counts = Counts(count_pixel_values(pixels), background.pictures)
        cache_counts(key, counts)
    background.pictures = counts.transparent
    return _dataset(collection, pixels, sigma_data, counts.levels)


def _dataset(
    collection: Collection, pixels: Tensor, sigma_data: float, levels: list[int] | None = None
) -> Dataset:
    """With the codec of these pixels (N, C, H, W); `levels` of those that are mapped."""
    try:
        codec = (
            ImageCodec.measure(pixels, sigma_data)
            if levels is None
            else ImageCodec.from_pixel_counts(levels, sigma_data)
        )
    except UserError as error:
        raise UserError(f"{collection.source}: {error}") from None
    return Dataset(
        collection.name,
        pixels,
        collection.labels.values,
        collection.labels.num_classes,
        codec,
        mapped=levels is not None or collection.mapped,
        notes=collection.notes,
        classes=collection.labels.classes,
        labels_from=collection.labels.origin,
    )


def _same_size(
    collection: Collection, first_name: str, first: np.ndarray, progress: bool
) -> Iterator[np.ndarray]:
    for name, read in collection.walk(f"reading {collection.name}", progress):
        image = read()
        if image.shape != first.shape:
            raise UserError(
                f"{collection.source}: {name} has the shape {image.shape}, {first_name} {first.shape}: "
                "`trigflow data prepare` gives images one size"
            )
        yield image


def as_collection(dataset: Dataset) -> Collection:
    """Images that are decoded already.

    Raises (when it is walked through):
        UserError: the data are vectors or latents.
    """
    return of_pixels(dataset.name, dataset.name, dataset.data, dataset.labelling, dataset.mapped)


def of_pixels(name: str, source: str, pixels: Tensor, labels: Labels, mapped: bool = False) -> Collection:
    """Images (N, C, H, W) that are decoded already.

    Raises (when it is walked through):
        UserError: they are neither grey nor RGB.
    """

    def entries() -> Iterator[tuple[str, Read]]:
        _check_images(source, pixels)
        for row, image in enumerate(pixels):
            yield f"image {row}", image.numpy

    return Collection(name, source, len(pixels), entries, labels, pixels=pixels, mapped=mapped)


def _check_images(source: str, pixels: Tensor) -> None:
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] not in (1, 3):
        shape = tuple(pixels.shape)
        raise UserError(f"{source} holds {pixels.dtype} of shape {shape}: give images, greyscale or RGB")


def file_content(path: Path, where: str) -> bytes:
    """The bytes of a file.

    Raises:
        DamagedPicture: it cannot be read, or is no regular file.
    """
    try:
        must_be_regular(path)
        return path.read_bytes()
    except UserError as error:
        raise DamagedPicture(str(error)) from None
    except OSError as error:
        raise DamagedPicture(f"cannot read {where}: {error.strerror or error}") from None
