"""Haze: how much of the images is neither background nor stroke, by their pixel values alone."""

from __future__ import annotations

import torch
from torch import Tensor

from trigflow.evaluation.metrics.metric import Metric, SampleSet

LEVELS = 256
DARKEST, BRIGHTEST = 4, 59  # of the levels; haze lies strictly between them


def levels(images: Tensor) -> Tensor:
    """How often each pixel value 0..255 occurs in uint8 images (of any shape): (256,) int64, where these are."""
    return images.flatten().bincount(minlength=LEVELS)


def levels_of_each(images: Tensor) -> Tensor:
    """`levels` of each of B uint8 images: (B, 256)."""
    return torch.stack([levels(image) for image in images])


def _compute(real: SampleSet, own: SampleSet) -> float | None:
    """Share of the images' pixel values strictly between 4 and 59 of 255: grey between background and stroke."""
    if own.levels is None:
        return None
    return int(own.levels[DARKEST + 1 : BRIGHTEST].sum()) / int(own.levels.sum())


HAZE = Metric(
    "haze",
    "{:.2%}",
    _compute,
    f"Haze: share of the pixel values strictly between {DARKEST} and {BRIGHTEST} of {LEVELS - 1}, neither background"
    " nor stroke: a marginal statistic, the same for all judges. In the row of halves it is that of all real data.",
    alone=True,
    of_real=True,
)
