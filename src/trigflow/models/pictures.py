"""Samples as pictures: image grids, and panels of samples from the same noise side by side."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from trigflow.system.errors import UserError
from trigflow.system.files import write_atomically

TILE = 48  # pixels: smaller images are magnified to about this, without smoothing
GAP = 2
BACKGROUND = 255
INK = "#2563a8"


def drawable(data_shape: tuple[int, ...]) -> bool:
    """Whether samples of this shape can be drawn: greyscale or RGB images, or vectors of two or more elements."""
    if len(data_shape) == 1:
        return data_shape[0] >= 2
    return len(data_shape) == 3 and data_shape[0] in (1, 3)


def grid(images: Tensor, columns: int | None = None) -> Image.Image:
    """A grid of images, row by row.

    Args:
        images: (N, C, H, W) uint8, C 1 (greyscale) or 3 (RGB), N >= 1.
        columns: number of columns (default: about as many as rows).

    Raises:
        UserError: images of another shape or dtype, or columns < 1.
    """
    if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3) or len(images) == 0:
        shape = f"{images.dtype} {tuple(images.shape)}"
        raise UserError(f"a picture needs uint8 images (N, 1 or 3, H, W), not {shape}: save them as .npz")
    columns = math.ceil(math.sqrt(len(images))) if columns is None else columns
    if columns < 1:
        raise UserError(f"columns is {columns}: give 1 or more")
    picture = Image.fromarray(_tiled(_magnified(images), min(columns, len(images))).numpy())
    return picture.convert("RGB") if images.shape[1] == 3 else picture.convert("L")


def _magnified(images: Tensor) -> Tensor:
    factor = max(1, TILE // max(images.shape[2:]))
    return images.cpu().repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _tiled(images: Tensor, columns: int) -> Tensor:
    """(N, C, H, W) -> (rows H + gaps, columns W + gaps) for grey images, with a last dimension of 3 for colours."""
    num, channels, height, width = images.shape
    rows = math.ceil(num / columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    canvas = torch.full((*size, channels), BACKGROUND, dtype=torch.uint8)
    for k, image in enumerate(images):
        top, left = (k // columns) * (height + GAP), (k % columns) * (width + GAP)
        canvas[top : top + height, left : left + width] = image.movedim(0, -1)
    return canvas.squeeze(-1)


def save_grid(samples: Tensor, path: Path | str, columns: int | None = None) -> None:
    """Writes images as a grid, or vectors as a scatter plot of their first two elements, as a PNG (atomically).

    Args:
        samples: as stored, (N, C, H, W) uint8 or (N, D >= 2) float.
        path: path of the PNG.
        columns: number of columns of the grid (default: about as many as rows).

    Raises:
        UserError: samples of another shape or dtype, or the file cannot be written.
    """
    write_atomically(Path(path), png(scatter(samples) if samples.ndim == 2 else grid(samples, columns)))


def scatter(vectors: Tensor) -> Figure:
    """A scatter plot of the first two elements of vectors (N, D >= 2).

    Raises:
        UserError: vectors of one element.
    """
    figure = Figure(figsize=(5, 5), layout="constrained")
    _draw_points(figure.subplots(), vectors)
    return figure


def _draw_points(axes: Axes, vectors: Tensor) -> None:
    if vectors.shape[1] < 2:
        raise UserError("a picture needs vectors of two elements or more: save them as .npz")
    axes.scatter(vectors[:, 0].cpu(), vectors[:, 1].cpu(), s=4, alpha=0.4, linewidths=0, color=INK)
    axes.set_aspect("equal", adjustable="datalim")


def panels(samples: Mapping[str, Tensor], columns: int = 10) -> Figure:
    """Several sets of samples, one titled panel for each; samples from the same noise have the same position.

    Args:
        samples: title -> samples as stored, at least one set.
        columns: number of columns of the grid in each panel.
    """
    across = min(2, len(samples))
    down = math.ceil(len(samples) / across)
    first = next(iter(samples.values()))
    rows = 1.0 if first.ndim == 2 else math.ceil(len(first) / columns) / min(columns, len(first))
    figure = Figure(figsize=(4.6 * across, (4.6 * rows + 0.35) * down), layout="constrained")
    places = list(figure.subplots(down, across, squeeze=False).flat)
    for axes, (name, value) in zip(places, samples.items(), strict=False):
        axes.set_title(name, fontsize=10)
        _draw_panel(axes, value, columns)
    for axes in places[len(samples) :]:
        axes.set_axis_off()
    return figure


def _draw_panel(axes: Axes, samples: Tensor, columns: int) -> None:
    if samples.ndim == 2:
        return _draw_points(axes, samples)
    axes.imshow(grid(samples, columns), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_axis_off()


def png(picture: Image.Image | Figure) -> bytes:
    """The PNG file of a picture."""
    buffer = io.BytesIO()
    if isinstance(picture, Figure):
        picture.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    else:
        picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
