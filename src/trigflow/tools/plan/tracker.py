"""Which memory is alive at each moment: every storage that torch's functions make, from its birth to its end."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all storages that are alive and were made while it is on.

    On tensors without numbers nothing is allocated, but their storages live and die as real ones do.
    Memory that a kernel takes and gives back by itself is not seen.

    Args:
        known: tensors that were there before, and are not counted.
        watch: called after each function with the bytes that are alive.
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
                self._meet(item)
        self.watch(self.live)
        return output

    def _meet(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += self._sizes[key]
            weakref.finalize(storage, self._part, key)

    def _part(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
