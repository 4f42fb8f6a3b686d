"""Latents of an autoencoder, as `trigflow data encode` writes them: a folder that numpy, too, can read.

latents.npy: (N, 2 C, h, w) float16 or float32, for each image the mean and then the standard deviation of its latent's
distribution; (N, C, h, w) where only the means are kept, or the autoencoder is certain of its latents. labels.npy: (N,)
int64, where there are labels. latents.json: a `LatentsCard`. vae/: a copy of the autoencoder.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from trigflow.data.autoencoder import FOLDER, Decoder
from trigflow.data.cache import is_large, mapped
from trigflow.data.codecs import LatentCodec
from trigflow.data.dataset import Dataset
from trigflow.data.formats.damage import damage_told
from trigflow.system.config import STRICT_KEYS, validate
from trigflow.system.errors import UserError, printable
from trigflow.system.files import read_json, sha256_of

CARD, LATENTS, LABELS = "latents.json", "latents.npy", "labels.npy"
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=1)]

# The last part of an autoencoder's name -> mean and standard deviation of its raw latents that a paper standardised by.
# Of ImageNet-512, arXiv 2410.11081, appendix G: images in [-1, 1].
PUBLISHED = {"sd-vae-ft-mse": ((1.56, -0.695, 0.483, 0.729), (5.27, 5.91, 4.21, 4.31))}


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class Encoder:
    """The autoencoder that made the latents.

    Args:
        source: a name on the hub or a path.
        sha256: of its weights.
        factor, image_channels: as in `codecs.LatentCodec`.
    """

    source: str
    sha256: Digest
    factor: Annotated[int, Field(ge=1, le=1024)]
    image_channels: Literal[1, 3]


@dataclass(frozen=True, kw_only=True, config=STRICT_KEYS)
class LatentsCard:
    """What a folder of latents is, stored as latents.json.

    Args:
        format: of the folder.
        source: where the images were.
        autoencoder: that made the latents.
        count: of latents.
        shape: of one, (C, h, w).
        dtype: of the numbers.
        has_std: whether standard deviations are kept besides the means.
        mean, std: measured of all latents, for each channel; the spread of each latent's distribution is part of it.
        num_classes: 0 without labels.
        classes: their names, where there are some.
        damaged: images that were left out.
        sha256: of latents.npy.
        labels_sha256: of labels.npy, "" without labels.
    """

    format: Literal[1] = 1
    source: str
    autoencoder: Encoder
    count: Count
    shape: tuple[Count, Count, Count]
    dtype: Literal["float16", "float32"]
    has_std: bool
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    num_classes: Annotated[int, Field(ge=0)]
    classes: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()
    sha256: Digest
    labels_sha256: str = ""

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of latents.npy."""
        channels, *sides = self.shape
        return (self.count, 2 * channels if self.has_std else channels, *sides)

    def codec(self, statistics: str = "auto", sigma_data: float = 0.5) -> LatentCodec:
        """Between these latents and x_0.

        Args:
            statistics: "measured"; "published": those of PUBLISHED; "auto": the latter, where there are some.
            sigma_data: standard deviation of x_0.

        Raises:
            UserError: nothing was published for this autoencoder.
        """
        by = self.autoencoder
        published = PUBLISHED.get(Path(by.source).name)
        if statistics == "published" and published is None:
            raise UserError(f"data.statistics = published: there are none for {by.source}; give measured")
        mean, std = (self.mean, self.std) if statistics == "measured" or not published else published
        return LatentCodec(mean, std, by.sha256, by.source, by.factor, by.image_channels, sigma_data)


def latent_folder(
    path: str,
    statistics: Literal["auto", "measured", "published"] = "auto",
    posterior: bool = True,
    sigma_data: float = 0.5,
) -> Dataset:
    """Latents of images from a folder that `trigflow data encode` wrote; those above 256 MiB stay in it, mapped.

    Args:
        path: of the folder.
        statistics: mean and standard deviation that latents are standardised by: "measured" of these; "published" of
            ImageNet-512, for sd-vae-ft-mse; "auto": the published ones, where there are some.
        posterior: draw each latent from its distribution at every look, where the folder has its standard deviation;
            false takes the mean.
        sigma_data: standard deviation of x_0.

    Raises:
        UserError: no such folder, or it is damaged.
    """
    folder = Path(path)
    card = read_latents_card(folder)
    codec = card.codec(statistics, sigma_data)
    array = _array(folder, card)
    stored = torch.from_numpy(array)
    means, spreads = stored[:, : card.shape[0]], stored[:, card.shape[0] :]
    return Dataset(
        folder.resolve().name,
        means,
        _labels(folder, card),
        card.num_classes,
        codec,
        classes=card.classes,
        labels_from=LABELS if card.labels_sha256 else f"{CARD} has none",
        mapped=isinstance(array, np.memmap),
        spread=spreads if card.has_std and posterior else None,
        decoder=Decoder(folder / FOLDER, codec.autoencoder, codec.source),
    )


def read_latents_card(folder: Path) -> LatentsCard:
    """The description of a folder of latents.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = folder / CARD
    if not path.is_file():
        raise UserError(f"{folder} holds no latents (no {CARD}): `trigflow data encode` writes them")
    card = validate(LatentsCard, read_json(path), str(path))
    if not len(card.mean) == len(card.std) == card.shape[0]:
        raise UserError(
            f"{path} is damaged: {card.shape[0]} channels, but other numbers of means or deviations"
        )
    return card


def latents_table(card: LatentsCard) -> str:
    """The report: a line for each property."""
    codec, by = card.codec(), card.autoencoder
    used = "measured"
    if codec.mean != card.mean:
        used = f"published for {Path(by.source).name} (data.statistics=measured takes those of these latents)"
    factors = [(codec.sigma_data / std, mean) for mean, std in zip(codec.mean, codec.std, strict=True)]
    x_0 = [
        (factor * (mean - shift), factor * std)
        for (factor, shift), mean, std in zip(factors, card.mean, card.std, strict=True)
    ]
    kept = "mean and standard deviation" if card.has_std else "mean alone"
    mib = np.dtype(card.dtype).itemsize * np.prod(card.stored_shape, dtype=float) / 2**20
    size = f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
    damaged_images = f" (first: {', '.join(card.damaged[:3])})" if card.damaged else ""
    lines = {
        "latents": f"{card.count}",
        "channels x height x width": " x ".join(map(str, card.shape)),
        "stored": f"{card.dtype}, {kept}: {size}",
        "mean, each channel": ", ".join(f"{mean:.4g}" for mean in card.mean),
        "std, each channel": ", ".join(f"{std:.4g}" for std in card.std),
        "standardised by": used,
        "x_0: mean (std)": ", ".join(f"{mean:.3f} ({std:.3f})" for mean, std in x_0),
        "classes": str(card.num_classes) if card.labels_sha256 else "none: no labels",
        "autoencoder": f"{by.source} (SHA-256 {by.sha256[:12]}...)",
        "images": f"{card.source}, smaller by {by.factor}",
        "damaged": f"{len(card.damaged)}{damaged_images}",
    }
    return "\n".join(f"{name:<28}{printable(value)}" for name, value in lines.items())


def _array(folder: Path, card: LatentsCard) -> np.ndarray:
    """latents.npy, mapped where it is large; a smaller one is checked by its digest, a large one by its size."""
    path = folder / LATENTS
    if not path.is_file():
        raise UserError(f"{folder} has no {LATENTS}: encode the images again")
    with damage_told(path, str(damaged(path)), (ValueError, EOFError, SyntaxError)):
        large = is_large(path.stat().st_size)
        if not large:
            check_digest(path, card.sha256)
        array = mapped(path) if large else np.load(path, allow_pickle=False)
    if array.shape != card.stored_shape or array.dtype != card.dtype:
        raise damaged(path, f": it holds {array.dtype} of shape {array.shape}")
    return array


def _labels(folder: Path, card: LatentsCard) -> Tensor | None:
    if not card.labels_sha256:
        return None
    path = folder / LABELS
    check_digest(path, card.labels_sha256)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def damaged(path: Path, why: str = "") -> UserError:
    """The error of a file that is not what it was."""
    return UserError(f"{path} is damaged or another file{why}; encode the images again")


def check_digest(path: Path, sha256: str) -> None:
    """Whether a file is the one that was written.

    Raises:
        UserError: it is not, or cannot be read.
    """
    if sha256_of(path) != sha256:
        raise damaged(path, " (its SHA-256 is wrong)")
