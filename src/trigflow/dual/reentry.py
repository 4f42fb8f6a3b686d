"""Torch's functions that are written in Python, so that their body can be run on Duals, and those that write in place.

Most of torch.nn.functional is Python that first checks whether an argument overrides torch's functions, and then calls
others. For a function without its own rule the body is run with this check switched off, so that the rules of
the functions inside apply: multi_head_attention_forward, for example, consists of linear maps and an attention.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _never(*args: Any) -> bool:
    return False


_QUESTIONS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _body(func: types.FunctionType) -> Callable[..., Any]:
    """A copy of a Python function that does not ask whether its arguments override torch's functions."""
    scope = {**func.__globals__, **dict.fromkeys(_QUESTIONS, _never)}
    copy = types.FunctionType(func.__code__, scope, func.__name__, func.__defaults__, func.__closure__)
    copy.__kwdefaults__ = func.__kwdefaults__
    return copy


def _asks(func: Any) -> bool:
    return isinstance(func, types.FunctionType) and any(name in func.__code__.co_names for name in _QUESTIONS)


def _public(space: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(space, name)) for name in dir(space) if not name.startswith("_")]


# Function -> its body to be run on Duals.
BODIES: dict[Any, Callable[..., Any]] = {
    func: _body(func) for space in (F, torch.functional) for _, func in _public(space) if _asks(func)
}


def _without_underscore(space: Any) -> dict[Any, Any]:
    return {
        func: getattr(space, name[:-1])
        for name, func in _public(space)
        if name.endswith("_") and not name.endswith("__") and callable(getattr(space, name[:-1], None))
    }


# Function that writes in place -> the one that returns a new tensor.
IN_PLACE: dict[Any, Any] = {
    **_without_underscore(F),
    **_without_underscore(torch),
    **_without_underscore(Tensor),
}


def _inplace_positions() -> dict[Any, int]:
    positions = {}
    for _, func in _public(F):
        if isinstance(func, types.FunctionType):
            parameters = list(inspect.signature(func).parameters)
            if "inplace" in parameters:
                positions[func] = parameters.index("inplace")
    return positions


_INPLACE_AT = _inplace_positions()


def inplace_argument(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bool, tuple[Any, ...], dict[str, Any]]:
    """Whether func was called with inplace=True, and its arguments with inplace=False."""
    position = _INPLACE_AT.get(func)
    if position is None:
        return False, args, kwargs
    if len(args) > position:
        return bool(args[position]), (*args[:position], False, *args[position + 1 :]), kwargs
    return bool(kwargs.get("inplace", False)), args, {**kwargs, "inplace": False}
