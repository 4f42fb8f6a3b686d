"""scikit-learn's handwritten digits: 1797 images of 8x8 pixels, part of the installation."""

from __future__ import annotations

import numpy as np
import torch

from trigflow.data.codecs import ImageCodec
from trigflow.data.dataset import Dataset


def digits(sigma_data: float = 0.5) -> Dataset:
    """Handwritten digits 8x8 of scikit-learn (1797 images, ten classes; UCI ML repository, public).

    The 17 pixel values 0..16 are stretched to 0..255.

    Args:
        sigma_data: standard deviation of x_0.
    """
    from sklearn.datasets import load_digits  # takes a second or two to import

    bunch = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    return Dataset("digits", images, labels, 10, ImageCodec.measure(images, sigma_data))
