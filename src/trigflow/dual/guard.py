"""A pass in the dual mode, and the errors for what it cannot differentiate."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint

from trigflow.dual.value import PASS, NoDerivative, duals_in

_GUARD = threading.Lock()
_guarded = 0


@contextmanager
def dual_pass() -> Iterator[None]:
    """While a function runs on Duals: in-place writes are tracked, and custom autograd functions are an error.

    A torch.autograd.Function does not see the tensors inside a Dual and would silently drop the graph. Its `apply`, a
    method of torch, is replaced for all threads until the last pass ends; for calls without Duals it is unchanged.
    """
    if torch.compiler.is_compiling():
        yield
        return
    outer, PASS.stale = PASS.stale, {}
    _guard(1)
    try:
        yield
    finally:
        _guard(-1)
        PASS.stale = outer


# The class between torch.autograd.Function and its C base: also F = MyFunction.apply, kept before, comes through it.
_BETWEEN: Any = torch.autograd.function._SingleLevelFunction


def _guard(step: int) -> None:
    """Count the running passes; the guard is installed from the first to the last."""
    global _guarded
    with _GUARD:
        _guarded += step
        if _guarded and "apply" not in _BETWEEN.__dict__:
            _BETWEEN.apply = classmethod(_guarded_apply)
        elif not _guarded and "apply" in _BETWEEN.__dict__:
            del _BETWEEN.apply


def _guarded_apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if cls.__name__ == "_NoopSaveInputs" or not duals_in(
        (args, kwargs)
    ):  # that one is torch's own checkpointing
        return super(_BETWEEN, cls).apply(*args, **kwargs)
    if cls is torch.utils.checkpoint.CheckpointFunction:
        raise NoDerivative(
            "torch.utils.checkpoint with use_reentrant=True loses the graph; pass use_reentrant=False"
        )
    raise NoDerivative(
        f"the custom autograd function {cls.__qualname__} has no rule for tensors that change along the path; use"
        " mode='finite_difference', or write it with differentiable functions"
    )
