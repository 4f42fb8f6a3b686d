"""A tensor with its derivative along the path, and the table of differentiation rules of torch's functions."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree

from trigflow.dual.operators import Operators
from trigflow.dual.reentry import BODIES, IN_PLACE, inplace_argument
from trigflow.system.errors import UserError

# A rule computes the value with its graph, and returns a function that computes the tangent: it is called without a
# graph, and not at all where activation checkpointing recomputes values. None in place of it: no tangent.
Rule = Callable[..., tuple[Any, Callable[[], Any] | None]]

# One rule for each torch function. Functions without one are differentiated by torch.func.jvp; `fallbacks` lists them.
RULES: dict[Callable[..., Any], Rule] = {}


class NoDerivative(UserError):
    """A function that neither has a rule nor can be differentiated by torch.func.jvp."""


class NotForDuals(UserError):
    """A function that fails on tensors with a derivative, and not on plain ones."""


class NumberRead(UserError):
    """A number was read out of a tensor that changes along the path."""


class InPlaceWrite(UserError):
    """A write in place that the derivative cannot follow."""


_FALLBACK_LISTS: list[list[str]] = []


@dataclass(eq=False)
class Dual(Operators):
    """A tensor and its derivative along the path.

    It can replace a tensor in any module: torch's functions look up their rule in RULES, and arguments that are no Dual
    have tangent zero, for which nothing is computed. It is a dataclass and not a subclass of Tensor, so that hooks
    which look for tensors in containers (FSDP2's) find the two tensors.

    Args:
        value: a tensor, with its graph when gradients are recorded.
        tangent: d value / d path, of the same shape and dtype, without a graph.
    """

    value: Tensor
    tangent: Tensor

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return apply(func, args, kwargs or {})

    # Attributes that code reads before it computes.

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    @property
    def ndim(self) -> int:
        return self.value.ndim

    def __getattr__(self, name: str) -> Any:
        """The methods and attributes of a tensor; methods find their rule as functions do."""
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(Tensor, name)
        if callable(attribute):
            return functools.partial(_method, attribute, self)
        found = getattr(self.value, name)
        if isinstance(found, Tensor) and (found.is_floating_point() or found.is_complex()):
            raise NoDerivative(
                f"the attribute .{name} of a tensor that changes along the path has no derivative"
            )
        return found

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __iter__(self) -> Iterator[Any]:
        return iter(apply(torch.unbind, (self,), {}))

    def __getitem__(self, index: Any) -> Any:
        return apply(Tensor.__getitem__, (self, index), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise _in_place_error("x[...] = y", "torch.where, torch.cat or x.index_put")

    def _applied(self, func: Callable[..., Any], *args: Any) -> Any:
        return apply(func, args, {})

    def _compared(self, func: Callable[..., Any], other: Any) -> Any:
        return func(self.value, value_of(other))

    def __float__(self) -> float:
        raise _number_error("float()")

    def __int__(self) -> int:
        raise _number_error("int()")


pytree.register_pytree_node(
    Dual,
    lambda dual: ([dual.value, dual.tangent], None),
    lambda fields, _: Dual(*fields),
    serialized_type_name="trigflow.Dual",
)


# ----------------------------------------------------------------------------------------------------------------------
# How a torch function is differentiated: by its rule, through its own Python body, or by torch.func.jvp.


def apply(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """func(*args, **kwargs) where some of the arguments are Duals."""
    if func not in RULES and not args and "input" in kwargs:
        args = (kwargs["input"],)
        kwargs = {name: item for name, item in kwargs.items() if name != "input"}
    if kwargs and func in RULES:
        args, kwargs = _in_order(func, args, kwargs)
    refuse_stale((args, kwargs))
    inplace, args, kwargs = inplace_argument(func, args, kwargs)
    if inplace or func in IN_PLACE:
        return _overwrite(args[0], apply(IN_PLACE.get(func, func), args, kwargs), func)
    if func not in RULES and func in BODIES:
        return BODIES[func](*args, **kwargs)
    rule: Rule = RULES.get(func, fallback)
    value, tangent = rule(func, *args, **kwargs)
    if args and isinstance(args[0], Dual) and value is args[0].value:
        return args[0]  # as contiguous() and float() return the very tensor where nothing is to be done
    return value if tangent is None else paired(value, tangent)


# Names of the tensors that a function takes, in their order; those of most are input and other.
_NAMES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"), ("tensors",)),
    "where": ("condition", "input", "other"),
    "pow": ("input", "exponent"),
    "lerp": ("input", "end", "weight"),
    "addcmul": ("input", "tensor1", "tensor2"),
    "addmm": ("input", "mat1", "mat2"),
    "baddbmm": ("input", "batch1", "batch2"),
    **dict.fromkeys(("mm", "bmm", "spmm"), ("input", "mat2")),
    "mv": ("input", "vec"),
    "dot": ("input", "tensor"),
    "outer": ("input", "vec2"),
    "tensordot": ("a", "b"),
    "pad": ("input", "pad", "mode", "value"),
}


def _in_order(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors that were passed by name as positional arguments."""
    name = getattr(func, "__name__", "")
    names = ("input", "condition", "other") if func is Tensor.where else _NAMES.get(name, ("input", "other"))
    rest = dict(kwargs)
    while len(args) < len(names) and names[len(args)] in rest:
        args = (*args, rest.pop(names[len(args)]))
    return args, rest


def paired(value: Any, tangent: Callable[[], Any]) -> Any:
    """The Dual, or tuple of Duals, of a value and the function that computes its tangent."""
    if _recomputing():
        return _pair(value, value)  # the tangent is not used
    with torch.no_grad():
        return _pair(value, tangent())


def _pair(value: Any, tangent: Any) -> Any:
    if isinstance(value, tuple | list):
        pairs = [_pair(v, t) for v, t in zip(value, tangent, strict=True)]
        return pairs if isinstance(value, list) else _like_tuple(value, pairs)
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return Dual(value, tangent if tangent.dtype == value.dtype else tangent.to(value.dtype))


def _like_tuple(value: tuple[Any, ...], items: list[Any]) -> tuple[Any, ...]:
    """The items as a tuple of the kind of `value`: x.max(dim=1).values has a name."""
    if torch.compiler.is_compiling() or not hasattr(type(value), "n_sequence_fields"):
        return tuple(items)
    kind: Any = type(value)
    return kind(items)  # type: ignore[no-any-return]


def _recomputing() -> bool:
    """Inside a backward pass: there activation checkpointing runs the forward pass once more, for its values."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


def _method(func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return apply(func, args, kwargs)


def value_of(item: Any) -> Any:
    """Duals replaced by their values, also inside lists, tuples and dictionaries."""
    return mapped(item, lambda dual: dual.value)


def duals_in(item: Any) -> list[Dual]:
    """The Duals among (nested) arguments."""
    found: list[Dual] = []
    mapped(item, found.append)
    return found


def mapped(item: Any, change: Callable[[Dual], Any]) -> Any:
    """(Nested) arguments with each Dual replaced by change(Dual)."""
    if isinstance(item, Dual):
        return change(item)
    if isinstance(item, list | tuple) and type(item) in (list, tuple):
        return type(item)(mapped(entry, change) for entry in item)
    if isinstance(item, dict):
        return {key: mapped(entry, change) for key, entry in item.items()}
    return item


def fallback(func: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, Callable[[], Any]]:
    """The value of a function without a rule, and its tangent by torch.func.jvp of this function alone."""
    name = torch.overrides.resolve_name(func) or getattr(func, "__name__", str(func))
    for names in _FALLBACK_LISTS:
        names.append(name)
    duals = duals_in((args, kwargs))
    random_state = None if torch.compiler.is_compiling() else torch.get_rng_state()
    value = func(*value_of(args), **value_of(kwargs))

    def called(*values: Tensor) -> Any:
        fresh = iter(values)
        return func(*mapped(args, lambda _: next(fresh)), **mapped(kwargs, lambda _: next(fresh)))

    values, tangents = tuple(dual.value for dual in duals), tuple(dual.tangent for dual in duals)

    def tangent() -> Any:
        with torch.random.fork_rng(enabled=random_state is not None):
            if random_state is not None:
                torch.set_rng_state(random_state)
            try:
                return torch.func.jvp(called, values, tangents)[1]
            except (NotImplementedError, RuntimeError) as error:
                raise NoDerivative(
                    f"{name} has no forward derivative ({_first_line(error)}); use mode='finite_difference', or write"
                    " it with differentiable functions"
                ) from error

    return value, tangent


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def fallbacks() -> Iterator[list[str]]:
    """Collects the names of the functions that had no rule and were differentiated by torch.func.jvp, with repeats."""
    names: list[str] = []
    _FALLBACK_LISTS.append(names)
    try:
        yield names
    finally:
        _FALLBACK_LISTS.remove(names)


# ----------------------------------------------------------------------------------------------------------------------
# What cannot be written, and what must not be read.


def _overwrite(target: Any, result: Any, func: Callable[..., Any]) -> Any:
    """An in-place function on a Dual: the object takes its new value; what shares the old one's memory is stale."""
    name = getattr(func, "__name__", str(func))
    if not isinstance(target, Dual):
        raise _in_place_error(
            f"{name}() of a tensor that has no derivative", "the function that returns a new tensor"
        )
    value = result.value if isinstance(result, Dual) else result
    if PASS.stale is not None and not torch.compiler.is_compiling() and not _same_memory(target.value, value):
        memory = StorageWeakRef(target.value.untyped_storage())  # type: ignore[no-untyped-call]
        PASS.stale[memory.cdata] = memory
    if isinstance(result, Dual):
        target.value, target.tangent = result.value, result.tangent
    else:
        target.value, target.tangent = result, torch.zeros_like(result)
    return target


class _Pass(threading.local):
    """Memory of the running pass that was overwritten: what still looks into it is out of date."""

    stale: dict[int, StorageWeakRef] | None = None


PASS = _Pass()


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def refuse_stale(items: Any) -> None:
    """An error if a Dual shares memory that an in-place write has replaced since."""
    if not PASS.stale or torch.compiler.is_compiling():
        return
    for dual in duals_in(items):
        if dual.value.untyped_storage()._cdata in PASS.stale:
            raise _in_place_error(
                "a tensor is read after another that shares its memory was written, as its view or base",
                "the function that returns a new tensor",
            )


def _in_place_error(what: str, instead: str) -> InPlaceWrite:
    return InPlaceWrite(f"the derivative cannot follow a write in place: {what}; use {instead}")


def _number_error(what: str) -> NumberRead:
    return NumberRead(
        f"{what} reads a number out of a tensor that changes along the path, so its derivative would be lost;"
        " keep it a tensor, or detach() it if that is intended"
    )


def read_number(func: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Any, None]:
    """The rule of item(), tolist() and numpy(): an error."""
    raise _number_error(f"{getattr(func, '__name__', func)}()")


def _swapped(dual: Dual) -> Any:
    return apply(torch.transpose, (dual, -2, -1), {})


_ATTRIBUTES: dict[str, Callable[[Dual], Any]] = {
    "T": lambda dual: apply(Tensor.permute, (dual, *reversed(range(dual.ndim))), {}),
    "H": lambda dual: apply(torch.adjoint, (dual,), {}),
    "mT": _swapped,
    "mH": lambda dual: apply(torch.adjoint, (dual,), {}),
    "data": lambda dual: dual.value.detach(),
    "real": lambda dual: apply(torch.real, (dual,), {}),
    "imag": lambda dual: apply(torch.imag, (dual,), {}),
}


def _attribute(name: str, read: Callable[[Dual], Any]) -> property:
    def write(dual: Dual, value: Any) -> None:
        raise _in_place_error(f"x.{name} = y", "the function that returns a new tensor")

    return property(read, write)


for _name, _read in _ATTRIBUTES.items():
    setattr(Dual, _name, _attribute(_name, _read))
