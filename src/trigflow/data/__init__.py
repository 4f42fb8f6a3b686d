"""Data sets. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trigflow import oracles
from trigflow.config import Component, build
from trigflow.data.archive import edm_zip
from trigflow.data.arrays import arrays
from trigflow.data.dataset import Dataset, labels_like, rows
from trigflow.data.digits import digits
from trigflow.data.idx import mnist
from trigflow.data.mixture2d import mixture2d
from trigflow.errors import UserError

DATASETS: dict[str, Callable[..., Dataset]] = {
    "arrays": arrays,
    "digits": digits,
    "edm_zip": edm_zip,
    "mixture2d": mixture2d,
    "mnist": mnist,
}

_READERS = {".npy": "arrays", ".npz": "arrays", ".zip": "edm_zip"}


def load_data(data: Component | str, sigma_data: float = 0.5) -> Dataset:
    """The data set of a recipe; the path of a .npy, .npz or .zip file or of a folder of IDX files is one, too.

    Raises:
        UserError: unknown name, missing or foreign file.
    """
    data = Component(data) if isinstance(data, str) else data
    path = Path(data.name)
    if reader := _READERS.get(path.suffix):
        data = Component(reader, {"path": data.name, **data.options})
    elif data.name not in DATASETS and path.is_dir():
        data = Component("mnist", {"folder": data.name, **data.options})
    dataset: Dataset = build(data, DATASETS, "data", sigma_data=sigma_data)
    return dataset


def exact_teacher(dataset: Dataset) -> oracles.Oracle:
    """The exact velocity of a data set: of its known distribution, else of the finite set of its points.

    Raises:
        UserError: the data has labels, which the closed forms do not know.
    """
    if dataset.oracle is not None:
        return dataset.oracle
    if dataset.labels is not None:
        raise UserError(f"teacher = exact: the closed form knows no labels, and {dataset.name} has some")
    return oracles.FiniteData(dataset.codec.encode(dataset.data), dataset.codec.sigma_data)


__all__ = [
    "DATASETS",
    "Dataset",
    "arrays",
    "digits",
    "edm_zip",
    "exact_teacher",
    "labels_like",
    "load_data",
    "mixture2d",
    "mnist",
    "rows",
]
