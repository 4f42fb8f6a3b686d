"""Recipes: a function for each, returning all that a run depends on. A new one is a function and a line here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from trigflow.recipes.cifar10 import (
    cifar10_scd,
    cifar10_sct,
    cifar10_small_scd,
    cifar10_small_scd_vsd,
    cifar10_small_teacher,
    cifar10_teacher,
)
from trigflow.recipes.digits import digits_scd, digits_scd_vsd, digits_sct, digits_teacher
from trigflow.recipes.imagenet import IMAGENET
from trigflow.recipes.mixture2d import mixture2d_scd, mixture2d_sct, mixture2d_teacher
from trigflow.recipes.mnist import mnist_scd, mnist_scd_fine, mnist_scd_vsd, mnist_sct, mnist_teacher
from trigflow.recipes.outside import recipe_of_file, recipe_of_function
from trigflow.recipes.schema import Recipe
from trigflow.system.config import apply_overrides
from trigflow.system.errors import UserError, did_you_mean

RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits-teacher": digits_teacher,
    "digits-scd": digits_scd,
    "digits-scd-vsd": digits_scd_vsd,
    "digits-sct": digits_sct,
    "mnist-teacher": mnist_teacher,
    "mnist-scd": mnist_scd,
    "mnist-scd-fine": mnist_scd_fine,
    "mnist-scd-vsd": mnist_scd_vsd,
    "mnist-sct": mnist_sct,
    "mixture2d-teacher": mixture2d_teacher,
    "mixture2d-scd": mixture2d_scd,
    "mixture2d-sct": mixture2d_sct,
    "cifar10-teacher": cifar10_teacher,
    "cifar10-scd": cifar10_scd,
    "cifar10-sct": cifar10_sct,
    "cifar10-small-teacher": cifar10_small_teacher,
    "cifar10-small-scd": cifar10_small_scd,
    "cifar10-small-scd-vsd": cifar10_small_scd_vsd,
    **IMAGENET,
}


def get(name: str | Path, overrides: Sequence[str] = (), trust_code: bool = False) -> Recipe:
    """A recipe, with changes `key=value`.

    Args:
        name: a name in RECIPES, a JSON file such as the recipe.json of a run, or "package.module:function" of your own
            function that returns a Recipe.
        overrides: changes.
        trust_code: import the code "package.module:name" that a JSON file names.

    Raises:
        UserError: unknown recipe or key, a value of a wrong type or out of range, code that only a file names.
    """
    if not isinstance(name, str | Path):
        raise UserError(
            f"the recipe is a {type(name).__name__}: give its name, its file or 'package.module:function'"
        )
    name = str(name)
    if name.endswith(".json"):
        return recipe_of_file(Path(name), overrides, trust_code)
    if ":" in name:
        return recipe_of_function(name, overrides)
    if name not in RECIPES:
        raise UserError(
            f"unknown recipe '{name}'{did_you_mean(name, RECIPES)}; `trigflow list recipes` names all, and a JSON file "
            "or package.module:function is one, too"
        )
    return apply_overrides(RECIPES[name](), overrides)
