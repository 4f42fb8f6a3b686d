"""Python's operators of a Dual, each by the torch function of its name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Operators(ABC):
    """The operators of Tensor; the subclass defines how a function is applied and compared."""

    @abstractmethod
    def _applied(self, func: Callable[..., Any], *args: Any) -> Any:
        """func(*args) by its rule."""

    @abstractmethod
    def _compared(self, func: Callable[..., Any], other: Any) -> Any:
        """func of the values alone."""

    # Arithmetic. x += y gives this object its new value, as x.add_(y) does, so that other names of it follow.

    def __neg__(self) -> Any:
        return self._applied(torch.neg, self)

    def __abs__(self) -> Any:
        return self._applied(torch.abs, self)

    def __add__(self, other: Any) -> Any:
        return self._applied(torch.add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self._applied(torch.sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._applied(torch.rsub, self, other)

    def __mul__(self, other: Any) -> Any:
        return self._applied(torch.mul, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return self._applied(torch.div, self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return self._applied(torch.mul, self._applied(torch.reciprocal, self), other)

    def __pow__(self, other: Any) -> Any:
        return self._applied(torch.pow, self, other)

    def __rpow__(self, other: Any) -> Any:
        return self._applied(torch.pow, other, self)

    def __matmul__(self, other: Any) -> Any:
        return self._applied(torch.matmul, self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return self._applied(torch.matmul, other, self)

    def __mod__(self, other: Any) -> Any:
        return self._applied(torch.remainder, self, other)

    def __rmod__(self, other: Any) -> Any:
        return self._applied(torch.remainder, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self._applied(torch.floor_divide, self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return self._applied(torch.floor_divide, other, self)

    def __iadd__(self, other: Any) -> Any:
        return self._applied(Tensor.add_, self, other)

    def __isub__(self, other: Any) -> Any:
        return self._applied(Tensor.sub_, self, other)

    def __imul__(self, other: Any) -> Any:
        return self._applied(Tensor.mul_, self, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._applied(Tensor.div_, self, other)

    def __ipow__(self, other: Any) -> Any:
        return self._applied(Tensor.pow_, self, other)

    # Comparisons have no derivative.

    def __eq__(self, other: object) -> Any:
        return self._compared(torch.eq, other)

    def __ne__(self, other: object) -> Any:
        return self._compared(torch.ne, other)

    def __lt__(self, other: Any) -> Any:
        return self._compared(torch.lt, other)

    def __le__(self, other: Any) -> Any:
        return self._compared(torch.le, other)

    def __gt__(self, other: Any) -> Any:
        return self._compared(torch.gt, other)

    def __ge__(self, other: Any) -> Any:
        return self._compared(torch.ge, other)

    __hash__ = object.__hash__
