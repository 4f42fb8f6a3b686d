"""The labels of samples: classes by number or name, taken in turn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trigflow.system.errors import UserError, did_you_mean

Labels = int | str | Sequence[int | str] | Tensor | None


def cycle_labels(
    n: int,
    labels: Labels,
    num_classes: int,
    model: str,
    classes: Sequence[str] = (),
    unseen: Sequence[int] = (),
) -> Tensor:
    """(n,) int64: the given classes in turn; by default all that the model was trained on.

    Args:
        n: number of samples.
        labels: a class, or several, by number or name.
        num_classes: number of classes of the model.
        model: name of the model, for errors.
        classes: names of its classes, () where they have none.
        unseen: classes that no training sample had.

    Raises:
        UserError: labels that are not classes of the model, or more labels than samples.
    """
    if labels is None:
        seen = torch.ones(num_classes, dtype=torch.bool)
        seen[list(unseen)] = False
        given = seen.nonzero().flatten()
    else:
        given = _given(n, labels, num_classes, model, classes)
    return given[torch.arange(n) % len(given)]


def _given(
    n: int,
    labels: int | str | Sequence[int | str] | Tensor,
    num_classes: int,
    model: str,
    classes: Sequence[str],
) -> Tensor:
    numbers = [_number(label, classes, model) for label in _several(labels)]
    if not numbers or not 0 <= min(numbers) <= max(numbers) < num_classes:
        raise UserError(
            f"labels {sorted(set(numbers))}: model '{model}' has the classes 0..{num_classes - 1}"
        )
    if len(numbers) > n:
        raise UserError(f"{len(numbers)} labels for {n} samples: give no more than one for each")
    return torch.tensor(numbers)


def label_of(text: str, classes: Sequence[str]) -> int | str:
    """A label from the command line: a name of a class, else a number, else a name that there is not."""
    return int(text) if text not in classes and text.isdecimal() and len(text) < 20 else text


def _several(labels: int | str | Sequence[int | str] | Tensor) -> list[object]:
    """The given labels, one or several; numbers of torch and NumPy as Python's."""
    given: Any = labels.reshape(-1).tolist() if hasattr(labels, "reshape") else labels
    several = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    return [one.tolist() if hasattr(one, "tolist") else one for one in several]


def _number(label: object, classes: Sequence[str], model: str) -> int:
    """Of one class."""
    if isinstance(label, str):
        return _named(label, classes, model)
    if type(label) is not int:  # isinstance would take True for 1
        raise UserError(f"labels {label!r:.40}: give whole numbers or names of classes")
    return label


def _named(name: str, classes: Sequence[str], model: str) -> int:
    found = [number for number, one in enumerate(classes) if one == name]
    if len(found) > 1:
        raise UserError(
            f"labels '{name}': the classes {found} of model '{model}' have this name: give a number"
        )
    if not found and not classes:
        raise UserError(f"labels '{name:.40}': model '{model}' has no names of classes: give whole numbers")
    if not found:
        more = ", ..." if len(classes) > 10 else ""
        raise UserError(
            f"labels '{name:.40}': model '{model}' has no such class{did_you_mean(name, classes)}; there are: "
            f"{', '.join(classes[:10])}{more}"
        )
    return found[0]
