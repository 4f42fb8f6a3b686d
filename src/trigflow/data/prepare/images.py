"""Images of any format and any sizes -> one zip archive in EDM's layout, resumable."""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from trigflow.data.collection import Collection
from trigflow.data.formats.picture import MOST_PIXELS, DamagedPicture, decoded
from trigflow.data.labels import TABLE, table_of_labels
from trigflow.data.prepare.part import Part, Unfit, resumable, stopped_by
from trigflow.data.prepare.statistics import Statistics, label_at
from trigflow.system.errors import UserError
from trigflow.system.files import make_folder, must_be_new

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the time of every member: the archive depends on the images alone
_REACH = 5  # pixels of the bicubic filter on both sides: 2 where it enlarges, below 4 where it halves at most


@dataclass(frozen=True)
class Preparation:
    """What is done to the images.

    Args:
        size: of the sides in pixels; None leaves images as they are, which must then be of one size.
        rgb: write all in RGB (default: as the first is; grey images among RGB ones become RGB).
        skip_damaged: leave damaged images out (default: stop).
    """

    size: int | None = None
    rgb: bool = False
    skip_damaged: bool = False


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Shorter side to `size`, then the square in the middle.

    As ADM does for ImageNet, whose preprocessing EDM2 and sCM take over: halved with a box filter while the shorter
    side is twice the size or more, then Pillow's bicubic filter, which is antialiased.

    Args:
        image: (1 or 3, H, W) uint8.
        size: >= 1.

    Returns:
        (1 or 3, size, size) uint8.
    """
    picture = _picture(image)
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    across, down = (_Middle.of(side, min(picture.size), size) for side in picture.size)
    picture = picture.crop((across.first, down.first, across.last, down.last))
    box = (across.start, down.start, across.end, down.end)
    pixels = np.array(picture.resize((size, size), Image.Resampling.BICUBIC, box))
    return pixels[None] if len(image) == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class _Middle(NamedTuple):
    """One side of the square in the middle: the pixels that it is computed from, and where it lies among them.

    Only these are resized: a picture a thousand times as wide as high would become a thousand squares.

    Attributes:
        first, last: of the picture's pixels, with those that the filter reaches.
        start, end: of the square, counted from `first`.
    """

    first: int
    last: int
    start: float
    end: float

    @classmethod
    def of(cls, side: int, shorter: int, size: int) -> _Middle:
        """Of a side of the picture in pixels, whose shorter side becomes `size`."""
        resized_side = max(size, round(side * size / shorter))
        pixel = side / resized_side
        start = (resized_side - size) // 2 * pixel
        end = start + size * pixel
        first, last = max(0, int(start) - _REACH), min(side, math.ceil(end) + _REACH)
        return cls(first, last, start - first, min(end - first, last - first))


def prepare(
    collection: Collection, out: Path, how: Preparation, resume: bool = False, progress: bool = True
) -> Statistics:
    """Writes an EDM archive: PNGs, stored, and dataset.json with the labels.

    Until it is whole there is a folder `out`.part beside it; with `resume` it is gone on with, and the archive is byte
    for byte that of a run without a stop.

    Args:
        collection: the images.
        out: path of the archive, .zip.
        how: what is done to the images.
        resume: go on with a run that was stopped.
        progress: show a bar on stderr.

    Returns:
        Statistics of the images as written.

    Raises:
        UserError: the archive exists, an image is damaged or of another size, or no space.
        KeyboardInterrupt: Ctrl-C; the text says how to go on.
    """
    if out.suffix != ".zip":
        raise UserError(f"--out {out}: give a name that ends in .zip")
    if how.size and how.size**2 > MOST_PIXELS:
        raise UserError(
            f"--size {how.size}: an image has at most {MOST_PIXELS} pixels, so give {math.isqrt(MOST_PIXELS)}"
        )
    must_be_new(out)
    make_folder(out.parent)
    # What must be the same for a run to go on; damaged images may be left out from now on.
    settings = {"size": how.size, "rgb": how.rgb} | collection.identity
    with resumable(out), Part(out, settings, resume, "images") as part:
        _convert(collection, how, part, progress)
        return _finish(part, collection, progress)


def _convert(collection: Collection, how: Preparation, part: Part, progress: bool) -> None:
    """From the first image that is not done yet to the last."""
    done = len(part.lines)
    whole = (decoded(content, name) for name, content in part.contents() if content)
    shape = next((image.shape for image in whole), None)
    entries = itertools.islice(collection.entries(), done, None)
    bar = tqdm(
        entries, total=collection.count, initial=done, unit="img", desc="preparing", disable=not progress
    )
    for name, read in bar:
        try:
            whole_image, transparent = collection.looked_at(read)
            image = _fitted(whole_image, how, shape, f"{collection.source}: {name}")
        except DamagedPicture as damage:
            if not how.skip_damaged:
                raise stopped_by(damage) from None
            part.add(name, b"")
            continue
        shape = image.shape
        part.add(name, _png(image), transparent)


def _fitted(image: np.ndarray, how: Preparation, shape: tuple[int, ...] | None, where: str) -> np.ndarray:
    """The image as it is written, of the shape that the first had."""
    if how.size:
        image = resized(image, how.size)
    channels = 3 if how.rgb else len(image) if shape is None else shape[0]
    if len(image) == 1 and channels == 3:
        image = image.repeat(3, axis=0)
    if len(image) != channels:
        raise Unfit(f"{where} is in RGB, the first image is greyscale: use --rgb")
    if shape is not None and image.shape != shape:
        raise Unfit(f"{where} has the shape {image.shape}, the first image {shape}: give them one by --size")
    return image


def _finish(part: Part, collection: Collection, progress: bool) -> Statistics:
    """Makes the archive of the part, and removes that."""
    part.close()
    statistics, labels = Statistics(), []
    whole = part.folder / "archive.zip"
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_STORED) as archive:
        bar = tqdm(part.contents(), total=len(part.lines), unit="img", desc="packing", disable=not progress)
        for row, (source, content) in enumerate(bar):
            if not content:
                statistics.damaged.append(source)
                continue
            number = f"{statistics.count:08d}"
            name, label = f"{number[:5]}/img{number}.png", label_at(collection.labels.values, row)
            labels.append([name, label])
            statistics.add(decoded(content, name), label)
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content)
        entries = None if collection.labels.values is None else labels
        table = table_of_labels(entries, collection.labels.classes)
        archive.writestr(zipfile.ZipInfo(TABLE, _EPOCH), json.dumps(table))
    if not statistics.count:
        raise Unfit(f"{collection.source}: all of its {len(part.lines)} images are damaged")
    with whole.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(whole, part.out)
    collection.count_transparent(part.transparent)
    part.remove()
    return statistics


def _picture(image: np.ndarray) -> Image.Image:
    return Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    _picture(image).save(buffer, "png")
    return buffer.getvalue()
