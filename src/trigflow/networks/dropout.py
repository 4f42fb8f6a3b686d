"""Dropout whose masks are a function of (seed, image number, layer) in training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from trigflow.core.randomness import SampleRandom, hash_uniform
from trigflow.system.errors import UserError


class Dropout(nn.Module):
    """Dropout whose mask can be a pure function of one key for each image.

    Args:
        p: probability that an element is dropped, in [0, 1).

    Attributes:
        keys: (B,) int64 within `seeded_dropout`: the mask of image b depends on keys[b] only, so it is the same in
            every pass, at every position in the batch and on every device. None: torch's own generator draws the mask.
    """

    keys: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise UserError(f"dropout must be in [0, 1), not {p}")
        self.p = p
        self.keys = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * ((self._uniform(x).to(x.device) >= self.p).to(x.dtype) / (1 - self.p))

    def _uniform(self, x: Tensor) -> Tensor:
        if self.keys is not None:
            return hash_uniform(self.keys, tuple(x.shape[1:]))
        # F.dropout draws in the order of memory, which in torch.func.jvp is another one for channels last.
        return torch.rand(x.shape, device=x.device)


def dropouts(module: nn.Module) -> dict[str, Dropout]:
    """The dropout layers in a module, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, Dropout)}


@contextmanager
def with_dropout_keys(module: nn.Module, keys: Mapping[str, Tensor | None]) -> Iterator[None]:
    """Sets the keys of a module's dropout layers, by name; on exit the former keys are restored."""
    layers = dropouts(module)
    former = {name: layer.keys for name, layer in layers.items()}
    for name, layer in layers.items():
        layer.keys = keys[name]
    try:
        yield
    finally:
        for name, layer in layers.items():
            layer.keys = former[name]


def seeded_dropout(module: nn.Module, random: SampleRandom) -> AbstractContextManager[None]:
    """Makes the dropout masks of all forward passes inside a function of (seed, image number, layer).

    The backward pass may follow outside, also through blocks that `checkpoint_blocks` recomputes; a network with its
    own recomputation must run it inside.

    Args:
        module: the network; its passes inside have batches of B images.
        random: has the number of each of these images, (B,).
    """
    return with_dropout_keys(module, {name: random.keys(f"dropout.{name}") for name in dropouts(module)})
