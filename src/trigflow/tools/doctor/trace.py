"""The calls of all modules in a pass, and finite differences of each of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from trigflow.dual import Dual

# Steps of the finite differences: the best of them counts. Rounding makes the small ones worse where a part of the
# network computes in float32, curvature the large ones.
STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
TINY_STEP, LARGE_STEP = 1e-6, 0.1


@dataclass
class Call:
    """One call of a module: its inputs, its output, and the generator's state before it."""

    name: str
    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    random_state: Tensor
    output: Any = None

    def again(self, step: float = 0.0) -> list[Tensor]:
        """The floating outputs for inputs moved by step along their tangents, with the same random numbers."""
        args, kwargs = _moved((self.args, self.kwargs), step)
        torch.set_rng_state(self.random_state)
        with torch.no_grad():
            return floats(self.module(*args, **kwargs))


@dataclass
class Trace:
    """The calls of one pass in the order in which they ended, and those that have not ended."""

    calls: list[Call] = field(default_factory=list)
    open: list[Call] = field(default_factory=list)

    @property
    def where(self) -> str:
        """The innermost module that is running, or that failed."""
        return self.open[-1].name if self.open else ""


@contextmanager
def traced(network: nn.Module, notice: Callable[[str], None] = lambda name: None) -> Iterator[Trace]:
    """Records the calls of all modules of the network.

    `notice` is called whenever a module begins or ends, with the name of the one that was running until then.
    """
    trace = Trace()
    names = {module: name for name, module in network.named_modules()}

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        notice(trace.where)
        trace.open.append(Call(names[module], module, args, kwargs, torch.get_rng_state()))

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        notice(trace.where)
        call = trace.open.pop()
        call.output = output
        trace.calls.append(call)

    handles: list[Any] = []
    for module in names:
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield trace
    finally:
        for handle in handles:
            handle.remove()


def _is_dual(item: Any) -> bool:
    return isinstance(item, Dual)


def _moved(items: Any, step: float) -> Any:
    """Each Dual as the plain tensor value + step tangent; everything else as it is."""
    return pytree.tree_map(
        lambda item: (item.value + step * item.tangent).detach() if _is_dual(item) else item,
        items,
        is_leaf=_is_dual,
    )


def _float_leaves(output: Any) -> list[Tensor | Dual]:
    leaves = pytree.tree_leaves(output, is_leaf=_is_dual)
    return [x for x in leaves if isinstance(x, Tensor | Dual) and x.dtype.is_floating_point]


def floats(output: Any) -> list[Tensor]:
    """The floating tensors of an output; the values of Duals."""
    return [x.value if isinstance(x, Dual) else x for x in _float_leaves(output)]


def tangents(output: Any) -> list[Tensor]:
    """The tangent of each floating tensor of an output, zero for plain ones."""
    return [x.tangent if isinstance(x, Dual) else torch.zeros_like(x) for x in _float_leaves(output)]


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Relative distance between two lists of tensors, 0 where both are zero, infinite where one is not finite."""
    distance = _norm([a.double() - b.double() for a, b in zip(one, other, strict=True)])
    if not math.isfinite(distance):
        return math.inf
    return distance / max(_norm(one), _norm(other)) if distance > 0 else 0.0


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(float(x.detach().double().square().sum()) for x in tensors))


def difference_error(given: list[Tensor], evaluate: Callable[[float], list[Tensor]]) -> float:
    """Relative distance of a tangent from the central difference of `evaluate`, for the step that fits best."""
    errors = []
    for step in STEPS:
        ahead, behind = evaluate(step), evaluate(-step)
        slopes = [(a.double() - b.double()) / (2 * step) for a, b in zip(ahead, behind, strict=True)]
        errors.append(difference(given, slopes))
    return min(errors)


def rounds_its_input(evaluate: Callable[[float], list[Tensor]]) -> bool:
    """Whether a tiny step changes nothing, but a large one does."""
    here = evaluate(0.0)
    tiny, large = difference(here, evaluate(TINY_STEP)), difference(here, evaluate(LARGE_STEP))
    return tiny == 0.0 and large > 0.0
