"""A look at images: their statistics, and some of them spread over the whole."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trigflow.data.collection import Collection
from trigflow.data.formats.picture import DamagedPicture
from trigflow.data.prepare.images import resized
from trigflow.data.prepare.statistics import Statistics, label_at
from trigflow.system.errors import UserError

_LARGEST = 256  # pixels: the side of shown images that are larger, so that not 64 photographs are kept
_MIXED = 64  # pixels: the side of shown images that have different sizes


def inspect(collection: Collection, shown: int, progress: bool = True) -> tuple[Statistics, Tensor]:
    """Statistics, in which damaged images are counted, and at most `shown` images (n, C, H, W) uint8.

    Raises:
        UserError: the source cannot be read, or all images are damaged.
    """
    statistics, why = Statistics(), ""
    collection.count_transparent(0)
    chosen: list[np.ndarray] = []
    every = max(1, -(-collection.count // shown))
    for row, (name, read) in enumerate(collection.walk("looking", progress)):
        try:
            image = read()
        except DamagedPicture as damage:
            statistics.damaged.append(name)
            why = why or str(damage)
            continue
        statistics.add(image, label_at(collection.labels.values, row))
        if row % every == 0 or not chosen:
            large = max(image.shape[1:]) > _LARGEST
            chosen.append(resized(image, _LARGEST) if large else image.copy())
    if not chosen:
        raise UserError(
            f"{collection.source}: all of its {collection.count} images are damaged, the first: {why}"
        )
    return statistics, _of_one_shape(chosen[:shown])


def _of_one_shape(images: list[np.ndarray]) -> Tensor:
    if len({image.shape for image in images}) > 1:
        images = [np.broadcast_to(resized(image, _MIXED), (3, _MIXED, _MIXED)) for image in images]
    return torch.from_numpy(np.stack(images))
