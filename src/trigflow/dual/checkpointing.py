"""Activation checkpointing with tangents: values are recomputed, tangents are neither stored nor recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from trigflow.dual.value import Dual, mapped


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with activation checkpointing: only its arguments are stored, and it is run again in backward.

    The recomputation does not use the tangents of its Duals (`value.paired`), so they are freed after the forward pass:
    a pass with tangents stores no more than one without.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        first = [(args, kwargs)]
        values = mapped((args, kwargs), lambda dual: Dual(dual.value, dual.value))

        def once_more(values: Any) -> Any:
            args, kwargs = first.pop() if first else values
            return function(*args, **kwargs)

        del args, kwargs
        return checkpoint(once_more, values, use_reentrant=False)

    return run
