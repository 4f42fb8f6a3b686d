"""Activation checkpointing that knows of tangents: values are recomputed, tangents neither kept nor recomputed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.checkpoint import checkpoint

from trigflow.dual.value import Dual, mapped


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; where gradients are recorded, only its arguments are kept, and it runs again in backward.

    Its second run finds Duals whose tangents nobody reads (`value.paired`): those of the first are let go with it, so
    that a pass with tangents keeps no more than one without.
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
