"""Numbers as users give them: NumPy's are some, too, and booleans are none."""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping
from dataclasses import is_dataclass
from numbers import Real
from typing import Any, TypeVar

from trigflow.system.errors import UserError

T = TypeVar("T")


def whole_numbers(**values: int) -> tuple[int, ...]:
    """The named values, integers of any kind (NumPy's, too), as Python's, in their order.

    Raises:
        UserError: one is not an integer, or a boolean.
    """
    return tuple(_whole_number(name, value) for name, value in values.items())


def _whole_number(name: str, value: int) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise UserError(f"{name} is {value!r}: give a whole number")


def real_number(name: str, value: Any) -> float:
    """The named value, a number of any kind, as one of Python's; an int or a float as it is.

    Raises:
        UserError: it is no number, or a boolean.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number:
        raise UserError(f"{name} is {value}: give one number, the same for all samples")
    return value if isinstance(value, int | float) else float(value)


def count_of(number: int, what: str) -> str:
    """ "1 step", "2 steps"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def checked_numbers(given: object, taken: T, path: str) -> T:
    """What was taken, unless a boolean was taken for a number: pydantic takes true for 1.

    Args:
        given: data as it was given, possibly nested.
        taken: what pydantic has made of it.
        path: of the data, for the error.

    Raises:
        UserError: a number was given as a boolean.
    """
    if isinstance(given, bool) and isinstance(taken, int | float) and not isinstance(taken, bool):
        raise UserError(f"{path} = {json.dumps(given)}: should be a number, not a boolean")
    if isinstance(given, list | tuple) and isinstance(taken, list | tuple):
        for place, (one, other) in enumerate(zip(given, taken, strict=False)):
            checked_numbers(one, other, f"{path}.{place}")
    if isinstance(given, Mapping):
        of = taken if isinstance(taken, Mapping) else vars(taken) if is_dataclass(taken) else {}
        for key, item in given.items():
            checked_numbers(item, of.get(key), f"{path}.{key}" if path else str(key))
    return taken
