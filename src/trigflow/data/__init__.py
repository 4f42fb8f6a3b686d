"""Data sets. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch

from trigflow.core import oracles
from trigflow.data.collection import Collection, as_collection, gathered
from trigflow.data.dataset import Dataset, labels_like, rows
from trigflow.data.digits import digits
from trigflow.data.formats import cifar, hub, idx
from trigflow.data.formats.archive import edm_zip
from trigflow.data.formats.arrays import arrays
from trigflow.data.formats.cifar import cifar10
from trigflow.data.formats.folder import image_folder
from trigflow.data.formats.hub import huggingface
from trigflow.data.formats.idx import mnist
from trigflow.data.formats.latents import latent_folder
from trigflow.data.formats.recognition import recognised
from trigflow.data.formats.shards import webdataset
from trigflow.data.labels import Labels, check_order
from trigflow.data.mixture2d import mixture2d
from trigflow.system.config import Component, build, validate
from trigflow.system.errors import UserError

# A format of images gives a collection of them, which may have any sizes.
DATASETS: dict[str, Callable[..., Dataset | Collection]] = {
    "arrays": arrays,
    "cifar10": cifar10,
    "digits": digits,
    "edm_zip": edm_zip,
    "huggingface": huggingface,
    "image_folder": image_folder,
    "latent_folder": latent_folder,
    "mixture2d": mixture2d,
    "mnist": mnist,
    "webdataset": webdataset,
}

# Those of files of images, or, for arrays, of vectors.
COLLECTIONS = {"arrays", "cifar10", "edm_zip", "huggingface", "image_folder", "mnist", "webdataset"}


# Those that have a part for training and one for testing, and whether the latter lies at a path.
TEST_PARTS: dict[str, Callable[[Path], bool]] = {
    "cifar10": cifar.has_test_part,
    "huggingface": hub.has_test_part,
    "mnist": idx.has_test_part,
}

_LEFT_OUT = "left out by data.labels=false"


def load_data(data: Component | str, sigma_data: float = 0.5) -> Dataset:
    """The data set of a recipe; the path of a file or folder in one of the formats is one, too (docs/data.md).

    Besides its own options, every data set has `labels`: false leaves them out, for a model without classes; and images
    have `flip`: true shows a training each image flipped left-right with probability 1/2.

    Raises:
        UserError: unknown name, missing or foreign file, flips of what is no image.
    """
    found, keep_labels, flip = _opened(data, sigma_data)
    dataset = gathered(found, sigma_data) if isinstance(found, Collection) else found
    if flip and dataset.data.dtype != torch.uint8:
        raise UserError(
            f"data.flip = true: {dataset.name} holds no images but latents or vectors; leave it out"
        )
    if not keep_labels:
        dataset = replace(dataset, labels=None, num_classes=0, classes=(), labels_from=_LEFT_OUT)
    return replace(dataset, flip=True) if flip else dataset


def load_collection(data: Component | str) -> Collection:
    """The same data as images of any sizes, which are decoded one by one.

    Raises:
        UserError: unknown name, missing or foreign file; or, when it is walked through, vectors or latents.
    """
    found, keep_labels, _ = _opened(data)
    collection = found if isinstance(found, Collection) else as_collection(found)
    return collection if keep_labels else replace(collection, labels=Labels(origin=_LEFT_OUT))


def _opened(data: Component | str, sigma_data: float = 0.5) -> tuple[Dataset | Collection, bool, bool]:
    """The data, and the options that all data sets have: whether labels are kept, and images flipped."""
    data = _named(data)
    options = dict(data.options)
    keep_labels = validate(bool, options.pop("labels", True), "data.labels")
    flip = validate(bool, options.pop("flip", False), "data.flip")
    found: Dataset | Collection = build(
        Component(data.name, options), DATASETS, "data", sigma_data=sigma_data
    )
    if not isinstance(found, Dataset | Collection):
        raise UserError(f"data '{data.name}' returns {type(found).__name__}: return a trigflow.data.Dataset")
    return found, keep_labels, flip


def held_out_part(data: Component | str) -> Component | None:
    """The test part that lies beside a training part; None where there is none.

    Of a name on the hub there is none either: nothing is downloaded that was not named.
    """
    named = _named(data)
    path = named.options.get("folder", named.options.get("path"))
    if named.name not in TEST_PARTS or named.options.get("split", "train") != "train":
        return None
    if not isinstance(path, str) or not TEST_PARTS[named.name](Path(path)):
        return None
    return Component(named.name, {**named.options, "split": "test"})


def _named(data: Component | str) -> Component:
    """A path as the format that it is of.

    Raises:
        UserError: neither a name nor a path; or a format, without the path of such data.
    """
    data = Component(data) if isinstance(data, str) else data
    if not data.name:
        raise UserError("the data is an empty text: give a name (`trigflow list datasets`) or a path")
    if data.name in DATASETS:
        argument = next(iter(signature(DATASETS[data.name]).parameters))
        if argument in ("path", "folder") and argument not in data.options:
            raise UserError(
                f"data = {data.name} is a format: give the path of such data in its place, or data.{argument}=PATH"
            )
        return data
    if (found := recognised(data.name)) is None:
        return data
    kind, argument = found
    return Component(kind, {argument: data.name, **data.options})


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
    "COLLECTIONS",
    "DATASETS",
    "Collection",
    "Dataset",
    "check_order",
    "digits",
    "exact_teacher",
    "held_out_part",
    "labels_like",
    "load_collection",
    "load_data",
    "mixture2d",
    "rows",
]
