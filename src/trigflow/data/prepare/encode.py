"""Images -> latents of an autoencoder on the disk, resumable (`data.latents` says how they lie there)."""

from __future__ import annotations

import hashlib
import itertools
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.data.autoencoder import FOLDER, Autoencoder, copy_autoencoder
from trigflow.data.collection import Collection, Read
from trigflow.data.formats.latents import CARD, LABELS, LATENTS, Encoder, LatentsCard
from trigflow.data.formats.picture import DamagedPicture
from trigflow.data.prepare.images import resized
from trigflow.data.prepare.part import Part, Unfit, resumable, stopped_by
from trigflow.system.config import to_json
from trigflow.system.errors import UserError
from trigflow.system.files import LOCK, make_folder, must_be_new, write_atomically, write_json

_HEADER = 128  # bytes before the numbers of a .npy file of ours, whatever the shape
_PIXELS = 2**20  # of the images of a batch, by default: four of 512x512 take 2.7 GB
_CHUNK = 2**24  # bytes read at once when the whole is looked over
_DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}


@dataclass(frozen=True)
class Encoding:
    """How images become latents.

    Args:
        size: as in `prepare.Preparation`; None leaves images as they are.
        dtype: of the stored numbers.
        mean_only: leave the standard deviations of the latents' distributions out: half of the space.
        skip_damaged: leave damaged images out (default: stop).
        batch: images in one pass; None: so many that they have a million pixels.
    """

    size: int | None = None
    dtype: Literal["float16", "float32"] = "float16"
    mean_only: bool = False
    skip_damaged: bool = False
    batch: int | None = None


def encode(
    collection: Collection,
    autoencoder: Autoencoder,
    source: tuple[Path, str],
    out: Path,
    how: Encoding,
    resume: bool = False,
    progress: bool = True,
) -> LatentsCard:
    """Writes a folder of latents.

    Nothing is random: each latent is kept as its distribution, from which a training draws by (seed, image number).
    Until it is whole the folder is called `out`.part; with `resume` it is gone on with, and with the same batch on the
    same machine it becomes byte for byte that of a run without a stop.

    Args:
        collection: the images, all of one size (or made so by how.size), a multiple of the autoencoder's factor.
        autoencoder: on the device where it computes.
        source: its folder, which is copied, and its name.
        out: folder, which must not be there.
        how: details.
        resume: go on with a run that was stopped.
        progress: show a bar on stderr.

    Raises:
        UserError: `out` exists, an image is damaged or does not fit, latents are not finite, or no space.
        KeyboardInterrupt: Ctrl-C; the text says how to go on.
    """
    must_be_new(out)
    if how.size and how.size % autoencoder.factor:
        raise UserError(f"--size {how.size}: the autoencoder wants a multiple of {autoencoder.factor}")
    batches = _Batches(collection, autoencoder, how)  # looks at the first image, before anything is written
    settings = _settings(collection, autoencoder, how)
    make_folder(out.parent)
    with resumable(out), Part(out, settings, resume, LATENTS, reserved=_HEADER, group=batches.size) as part:
        _fill(part, batches, progress)
        return _finish(part, batches, source, progress)


def _settings(collection: Collection, autoencoder: Autoencoder, how: Encoding) -> dict[str, Any]:
    """What must be the same for a run to go on; the batch may differ, and damaged images be left out from now on."""
    own = {key: getattr(how, key) for key in ("size", "dtype", "mean_only")}
    return own | collection.identity | {"autoencoder": autoencoder.sha256}


# From images to numbers


class _Batches:
    """The images in batches whose bounds are multiples of `size`, and their latents.

    Raises:
        UserError: the first image that can be read does not fit the autoencoder.
    """

    def __init__(self, collection: Collection, autoencoder: Autoencoder, how: Encoding) -> None:
        self.collection, self.autoencoder, self.how = collection, autoencoder, how
        self.shape = self._first_shape()
        _, height, width = self.shape
        self.size = how.batch or max(1, _PIXELS // (height * width))
        latent = self.encoded([np.zeros(self.shape, np.uint8)])
        self.has_std = latent.shape[1] == 2 * autoencoder.latent_channels
        self.latent_shape = (autoencoder.latent_channels, latent.shape[2], latent.shape[3])
        factor = autoencoder.factor
        if self.latent_shape[1:] != (height // factor, width // factor):
            raise UserError(
                f"the autoencoder makes {self.latent_shape} of {self.shape}, not smaller by {factor}"
            )

    def _first_shape(self) -> tuple[int, int, int]:
        why: UserError | None = None
        for name, read in self.collection.entries():
            try:
                image = self.fitted(read(), f"{self.collection.source}: {name}")
            except DamagedPicture as damage:
                if not self.how.skip_damaged:
                    raise stopped_by(damage) from None
                why = why or damage
                continue
            channels, height, width = image.shape
            if height % self.autoencoder.factor or width % self.autoencoder.factor:
                raise UserError(
                    f"{self.collection.source}: {name} has {width}x{height} pixels: the autoencoder wants multiples of "
                    f"{self.autoencoder.factor}, give --size"
                )
            return channels, height, width
        raise UserError(f"{self.collection.source}: all of its images are damaged, the first: {why}")

    def fitted(self, image: np.ndarray, where: str) -> np.ndarray:
        """An image as the autoencoder takes it: of the wanted size, grey ones in its channels."""
        if self.how.size:
            image = resized(image, self.how.size)
        if len(image) == 1 and self.autoencoder.image_channels == 3:
            image = image.repeat(3, axis=0)
        if len(image) != self.autoencoder.image_channels:
            raise Unfit(
                f"{where} is in RGB, and the autoencoder is for greyscale images: choose another --vae"
            )
        return image

    def read(self, name: str, read: Read) -> tuple[np.ndarray | None, bool]:
        """The image, of the shape of the first, and whether it had transparent pixels.

        None for a damaged one that is to be left out.
        """
        where = f"{self.collection.source}: {name}"
        try:
            whole, transparent = self.collection.looked_at(read)
            image = self.fitted(whole, where)
        except DamagedPicture as damage:
            if not self.how.skip_damaged:
                raise stopped_by(damage) from None
            return None, False
        if image.shape != self.shape:
            raise Unfit(f"{where} has the shape {image.shape}, the first {self.shape}: give --size")
        return image, transparent

    def encoded(self, images: list[np.ndarray]) -> Tensor:
        """(B, C or 2 C, h, w) float32 where the autoencoder computes: means, and deviations where they are kept."""
        mean, std = self.autoencoder.moments(torch.from_numpy(np.stack(images)))
        return mean if std is None or self.how.mean_only else torch.cat([mean, std], 1)

    def stored(self, numbers: Tensor) -> np.ndarray:
        """The same in the stored type.

        Raises:
            UserError: numbers that are not finite in that type.
        """
        with np.errstate(over="ignore"):
            stored: np.ndarray = numbers.cpu().numpy().astype(_DTYPES[self.how.dtype])
        if not np.isfinite(stored).all():
            large = " in float16: give --dtype float32" if self.how.dtype == "float16" else ""
            raise Unfit(f"the autoencoder makes latents that are not finite{large}")
        return stored


Chunk = list[tuple[str, np.ndarray | None, bool]]


def _fill(part: Part, batches: _Batches, progress: bool) -> None:
    """From the first batch that is not done yet to the last; a GPU encodes one while the next is read."""
    collection, done = batches.collection, len(part.lines)
    entries = itertools.islice(collection.entries(), done, None)
    bar = tqdm(total=collection.count, initial=done, unit="img", desc="encoding", disable=not progress)
    with bar:
        chunk = _read(batches, entries)
        while chunk:
            images = [image for _, image, _ in chunk if image is not None]
            numbers = batches.encoded(images) if images else None
            following = _read(batches, entries)
            _add(part, chunk, () if numbers is None else batches.stored(numbers))
            bar.update(len(chunk))
            chunk = following


def _read(batches: _Batches, entries: Iterator[tuple[str, Read]]) -> Chunk:
    """The next batch of names and images, and whether these had transparent pixels; [] at the end."""
    return [(name, *batches.read(name, read)) for name, read in itertools.islice(entries, batches.size)]


def _add(part: Part, chunk: Chunk, latents: Iterable[np.ndarray]) -> None:
    """A line and a latent for each image, an empty one where the image was damaged."""
    left = iter(latents)
    for name, image, transparent in chunk:
        part.add(name, b"" if image is None else next(left).tobytes(), transparent)


# From the part to the folder


def _finish(part: Part, batches: _Batches, source: tuple[Path, str], progress: bool) -> LatentsCard:
    """Looks all of it over, writes what else belongs to the folder, and gives it its name."""
    part.close()
    collection, folder = batches.collection, part.folder
    given = collection.labels
    kept = [row for row, line in enumerate(part.lines) if line["length"]]
    shape = (len(kept), *((2 if batches.has_std else 1) * batches.latent_shape[0], *batches.latent_shape[1:]))
    with part.content.open("r+b") as file:
        file.write(_header(_DTYPES[batches.how.dtype], shape))
        file.flush()
        os.fsync(file.fileno())
    mean, std, sha256 = _looked_over(part.content, shape, batches, progress)
    labels = None if given.values is None else given.values[torch.tensor(kept)]
    card = LatentsCard(
        source=collection.source,
        autoencoder=_encoder(batches.autoencoder, source[1]),
        count=len(kept),
        shape=batches.latent_shape,
        dtype=batches.how.dtype,
        has_std=batches.has_std,
        mean=mean,
        std=std,
        num_classes=given.num_classes,
        classes=given.classes,
        damaged=tuple(line["name"] for line in part.lines if not line["length"]),
        sha256=sha256,
        labels_sha256="" if labels is None else _write_labels(folder / LABELS, labels),
    )
    copy_autoencoder(source[0], folder / FOLDER)
    write_json(folder / CARD, to_json(card))
    os.replace(folder, part.out)
    collection.count_transparent(part.transparent)
    for left in (part.index.name, LOCK):
        (part.out / left).unlink(missing_ok=True)
    return card


def _encoder(autoencoder: Autoencoder, name: str) -> Encoder:
    channels: Any = autoencoder.image_channels
    return Encoder(source=name, sha256=autoencoder.sha256, factor=autoencoder.factor, image_channels=channels)


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """The first _HEADER bytes of a .npy file, format 1.0."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", _HEADER - 10)
    return start + text.encode().ljust(_HEADER - 11) + b"\n"


def _write_labels(path: Path, labels: Tensor) -> str:
    """Returns the digest of the file."""
    dtype = np.dtype("<i8")
    content = _header(dtype, tuple(labels.shape)) + labels.numpy().astype(dtype).tobytes()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()


def _looked_over(
    path: Path, shape: tuple[int, ...], batches: _Batches, progress: bool
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation of each channel, in float64, and the digest of the file.

    A latent is drawn from its distribution: the variance over all is that of the means, and the mean of the variances.
    """
    channels, dtype = batches.latent_shape[0], _DTYPES[batches.how.dtype]
    digest, sums, squares = hashlib.sha256(), np.zeros(channels), np.zeros(channels)
    record = int(np.prod(shape[1:])) * dtype.itemsize
    with path.open("rb") as file:
        digest.update(file.read(_HEADER))
        rows = max(1, _CHUNK // record)
        for _ in tqdm(range(0, shape[0], rows), "looking over", unit="chunk", delay=1, disable=not progress):
            content = file.read(rows * record)
            digest.update(content)
            numbers = np.frombuffer(content, dtype).reshape(-1, *shape[1:]).astype(np.float64)
            sums += numbers[:, :channels].sum((0, 2, 3))
            squares += np.square(numbers).reshape(len(numbers), -1, channels, *shape[2:]).sum((0, 1, 3, 4))
    pixels = shape[0] * int(np.prod(shape[2:]))
    mean = sums / pixels
    std = np.sqrt(np.maximum(squares / pixels - np.square(mean), 0))
    if not (std > 0).all():
        raise Unfit("a channel of the latents does not vary: there is nothing to learn")
    return tuple(mean.tolist()), tuple(std.tolist()), digest.hexdigest()
