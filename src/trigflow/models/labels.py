"""The labels of samples: whole numbers from 0, taken in turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trigflow.system.errors import UserError

Labels = int | Sequence[int] | Tensor | None


def cycle_labels(n: int, labels: Labels, num_classes: int, model: str) -> Tensor:
    """(n,) int64: the given classes in turn, all of them by default.

    Args:
        n: number of samples.
        labels: a class, or several.
        num_classes: number of classes of the model.
        model: name of the model, for errors.

    Raises:
        UserError: labels that are not integers or not classes of the model, or more labels than samples.
    """
    given = torch.arange(num_classes) if labels is None else _whole(labels)
    if len(given) == 0 or not 0 <= int(given.min()) <= int(given.max()) < num_classes:
        raise UserError(
            f"labels {sorted(set(given.tolist()))}: model '{model}' has the classes 0..{num_classes - 1}"
        )
    if labels is not None and len(given) > n:
        raise UserError(f"{len(given)} labels for {n} samples: give no more than one for each")
    return given[torch.arange(n) % len(given)]


def _whole(labels: int | Sequence[int] | Tensor) -> Tensor:
    """(n,) int64 on the CPU."""
    try:
        given = torch.as_tensor(labels).cpu().reshape(-1)
    except (TypeError, ValueError, RuntimeError):  # whatever is no array of numbers
        given = torch.zeros(1)
    if len(given) and (given.is_floating_point() or given.is_complex() or _holds_booleans(labels, given)):
        raise UserError(f"labels {labels!r}: give whole numbers")
    return given.long()


def _holds_booleans(labels: int | Sequence[int] | Tensor, given: Tensor) -> bool:
    """Whether some of the labels are True or False, which are no classes; torch takes [True, 2] for [1, 2]."""
    listed = labels if isinstance(labels, list | tuple) else ()
    return given.dtype == torch.bool or any(isinstance(label, bool) for label in listed)
