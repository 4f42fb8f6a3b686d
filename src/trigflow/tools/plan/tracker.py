"""The memory in use after each function of torch: every storage, from its allocation until it is freed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that were made while the mode is on and are still referenced.

    The storages of fake tensors hold no memory, but are made and freed as those of real ones. Workspaces that a
    kernel allocates and frees by itself are not counted.

    Args:
        known: tensors that exist already, and are not counted.
        watch: called after each function with the number of bytes in use.
    """

    def __init__(self, known: Iterable[Tensor], watch: Callable[[int], object]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.watch = watch
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        for item in tree_leaves(output):
            if isinstance(item, Tensor):
                self._add(item)
        self.watch(self.live)
        return output

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
