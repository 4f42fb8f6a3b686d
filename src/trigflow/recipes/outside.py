"""Recipes from outside the package: a recipe.json, or a function of the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trigflow.recipes.schema import Recipe, with_current_names
from trigflow.system.config import apply_overrides, check_trusted, import_object, to_json, validate
from trigflow.system.errors import UserError, errors_reported
from trigflow.system.files import read_json


def recipe_of_file(path: Path, overrides: Sequence[str], trust_code: bool) -> Recipe:
    """The recipe in a JSON file, such as the recipe.json of a run, with changes `key=value`.

    Args:
        path: the file.
        overrides: changes; code that they name is the user's own.
        trust_code: import any "package.module:name" that the file names, too.

    Raises:
        UserError: no such file, no recipe in it, a wrong change, or code that only the file names.
    """
    recipe = apply_overrides(validate(Recipe, with_current_names(read_json(path)), str(path)), overrides)
    named = {override.partition("=")[::2] for override in overrides}
    for what, name in _code(to_json(recipe)):
        if not trust_code and (what, name) not in named:
            check_trusted(name, what, path)
    return recipe


def recipe_of_function(name: str, overrides: Sequence[str]) -> Recipe:
    """The recipe that "package.module:function", called without arguments, returns, with changes `key=value`.

    Raises:
        UserError: there is no such function, it fails, or it returns something else.
    """
    with errors_reported("recipe", name):
        recipe: Any = import_object(name)()
    if not isinstance(recipe, Recipe):
        raise UserError(f"recipe '{name}' returns {type(recipe).__name__}: return a trigflow.Recipe")
    return apply_overrides(recipe, overrides)


def _code(data: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """The key and the name of each "package.module:name" in a recipe as JSON."""
    for key, value in data.items():
        where = f"{path}{key}"
        if isinstance(value, dict) and isinstance(value.get("name"), str) and "options" in value:
            if ":" in value["name"]:
                yield where, value["name"]
        elif isinstance(value, dict):
            yield from _code(value, f"{where}.")
        elif where == "sampling.sampler" and ":" in value:
            yield where, value
