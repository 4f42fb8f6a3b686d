"""The shape of a recipe's data, known without reading it: a training can be planned before its data is there."""

from __future__ import annotations

from trigflow.data import COLLECTIONS, load_collection, load_data
from trigflow.data.formats.recognition import recognised
from trigflow.recipes import RECIPES
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component

Shape = tuple[tuple[int, ...], int]

# First part of a recipe's name -> shape of one sample, number of classes.
SHAPES: dict[str, Shape] = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "mixture2d": ((2,), 0),
    "cifar10": ((3, 32, 32), 10),
    "imagenet64": ((3, 64, 64), 1000),
    "imagenet512": ((4, 64, 64), 1000),
}


def sample_shape(recipe: Recipe) -> Shape:
    """The shape (C, *size) of one sample of a recipe's data, and the number of classes; 0 where labels are left out.

    For the recipes of this package it is tabulated; of the user's own data the first image is read.

    Raises:
        UserError: the user's own data is missing or cannot be read.
    """
    options = dict(recipe.data.options)
    labelled = bool(options.pop("labels", True))
    options.pop("flip", None)
    data_shape, num_classes = _known(recipe, options) or _read(Component(recipe.data.name, options))
    return data_shape, num_classes if labelled else 0


def _known(recipe: Recipe, options: dict[str, object]) -> Shape | None:
    """That of a recipe of this package, unless its data was overridden."""
    prefix = recipe.name.partition("-")[0]
    if recipe.name not in RECIPES or prefix not in SHAPES:
        return None
    own = RECIPES[recipe.name]().data
    own_options = {key: value for key, value in own.options.items() if key not in ("labels", "flip")}
    return SHAPES[prefix] if (own.name, own_options) == (recipe.data.name, options) else None


def _read(data: Component) -> Shape:
    found = None if data.name in COLLECTIONS else recognised(data.name)
    kind = found[0] if found else data.name
    if kind not in COLLECTIONS:
        dataset = load_data(data)
        return dataset.data_shape, dataset.num_classes
    collection = load_collection(data)
    if collection.pixels is not None:  # or vectors
        return tuple(collection.pixels.shape[1:]), collection.labels.num_classes
    entries = collection.entries()  # named, so that its file stays open until the first picture is read
    _, read = next(entries)
    return tuple(read().shape), collection.labels.num_classes
