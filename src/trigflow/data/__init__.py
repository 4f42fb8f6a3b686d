"""Data sets. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trigflow.config import Component, build
from trigflow.data.arrays import arrays
from trigflow.data.dataset import Dataset, rows
from trigflow.data.digits import digits
from trigflow.data.mixture2d import mixture2d

DATASETS: dict[str, Callable[..., Dataset]] = {"arrays": arrays, "digits": digits, "mixture2d": mixture2d}


def load_data(data: Component | str, sigma_data: float = 0.5) -> Dataset:
    """The data set of a recipe; a path of a .npy or .npz file stands for `arrays` with that path.

    Raises:
        UserError: unknown name, missing or foreign file.
    """
    data = Component(data) if isinstance(data, str) else data
    if Path(data.name).suffix in (".npy", ".npz"):
        data = Component("arrays", {"path": data.name, **data.options})
    dataset: Dataset = build(data, DATASETS, "data", sigma_data=sigma_data)
    return dataset


__all__ = ["DATASETS", "Dataset", "arrays", "digits", "load_data", "mixture2d", "rows"]
