"""The network under examination with inputs and directions, on which passes are repeatable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trigflow.models.model import load
from trigflow.system.config import Component, build
from trigflow.system.errors import UserError

BATCH = 4
DEFAULT_SHAPE = (3, 32, 32)
_SEED = 1234


@dataclass(frozen=True)
class Subject:
    """A network and the point at which its derivative is examined.

    Args:
        name: of the network.
        network: in training mode. Parameters that are all zero have been replaced by small random numbers: behind a
            last layer of zeros every derivative is zero, and no error would show.
        x, t: inputs, (B, ...) and (B,).
        dx, dt: directions of the derivative.
        cond: further inputs by name.
    """

    name: str
    network: nn.Module
    x: Tensor
    t: Tensor
    dx: Tensor
    dt: Tensor
    cond: Mapping[str, Tensor]

    @property
    def exact_tolerance(self) -> float:
        """Between exact modes: for rounding, also where a part of a float64 network computes in float32."""
        return 1e-5 if self.x.dtype == torch.float64 else 1e-3

    @property
    def difference_tolerance(self) -> float:
        """To finite differences; those of sinusoids of large times, computed in float32, are off by 0.3 %."""
        return 5e-3 if self.x.dtype == torch.float64 else 3e-2

    def output(self, x: Tensor, t: Tensor) -> Tensor:
        """Of a pass at other inputs, with the same random numbers in every pass."""
        torch.manual_seed(_SEED)
        output: Tensor = self.network(x, t, **self.cond)
        return output

    def to(self, dtype: torch.dtype, device: torch.device) -> Subject:
        """A copy."""

        def cast(tensor: Tensor) -> Tensor:
            return tensor.to(device, dtype if tensor.is_floating_point() else None)

        network = copy.deepcopy(self.network).to(device=device, dtype=dtype)
        cond = {name: cast(tensor) for name, tensor in self.cond.items()}
        return Subject(self.name, network, cast(self.x), cast(self.t), cast(self.dx), cast(self.dt), cond)


def load_subject(
    model: str | nn.Module,
    data_shape: tuple[int, ...] | None,
    inputs: tuple[Tensor, Tensor] | None,
    cond: Mapping[str, Tensor] | None,
    trust_code: bool = False,
) -> Subject:
    """A copy of the model, with the default inputs where none are given; the arguments are those of `diagnose`."""
    name = model if isinstance(model, str) else type(model).__name__
    network, own_shape = _network(model, data_shape, trust_code) if isinstance(model, str) else (model, None)
    network = copy.deepcopy(network).train().requires_grad_(True)
    generator = torch.Generator().manual_seed(_SEED)
    _replace_zeros(network, generator)
    x, t = inputs or _inputs(data_shape or own_shape or DEFAULT_SHAPE, generator)
    if x.shape[:1] != t.shape:
        raise UserError(
            f"the inputs must be x (B, ...) and t (B,), not {tuple(x.shape)} and {tuple(t.shape)}"
        )
    dx = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    cond = dict(cond) if cond is not None else _conditions(network, len(x), generator)
    return Subject(name, network, x.double(), t.double(), dx, torch.ones_like(t).double(), cond)


def _network(
    name: str, data_shape: tuple[int, ...] | None, trust_code: bool
) -> tuple[nn.Module, tuple[int, ...] | None]:
    """The network and the shape of its samples."""
    if ":" not in name:
        model = load(name, "cpu", trust_code)
        return model.precond, tuple(model.card.data_shape)
    shape = data_shape or DEFAULT_SHAPE
    network = build(Component(name), {}, "network", data_shape=shape)
    if not isinstance(network, nn.Module):
        raise UserError(f"'{name}' makes a {type(network).__name__}; the doctor examines an nn.Module")
    return network, shape


def _replace_zeros(network: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point() and not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def _inputs(data_shape: tuple[int, ...], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """x of unit variance, and times from 0.2 to 1.4, inside of [0, pi/2]."""
    x = torch.randn(BATCH, *data_shape, generator=generator, dtype=torch.float64)
    return x, 0.2 + 1.2 * torch.rand(BATCH, generator=generator, dtype=torch.float64)


def _conditions(network: nn.Module, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random labels, guidance scales and second times (B,), where the network's attributes say that it takes them.

    These are num_classes, guidance_input and second_time.
    """
    num_classes = int(getattr(network, "num_classes", 0) or 0)
    cond = {"labels": torch.randint(num_classes, (batch,), generator=generator)} if num_classes else {}
    if getattr(network, "guidance_input", False):
        cond["guidance"] = 1 + torch.rand(batch, generator=generator, dtype=torch.float64)
    if getattr(network, "second_time", False):
        cond["s"] = 0.2 * torch.rand(batch, generator=generator, dtype=torch.float64)  # t is 0.2 at least
    return cond
