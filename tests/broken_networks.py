"""Networks with planted faults, one each, for the doctor to find; and a sound one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SHAPE = (2, 4, 4)


class Time(nn.Module):
    """Embedding of the time, where some faults are planted."""

    def forward(self, t: Tensor) -> Tensor:
        return torch.stack([t.cos(), t.sin()], dim=1)


class Activation(nn.Module):
    """Where the other faults are planted."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x)


class Sound(nn.Module):
    """Two convolutions and a time embedding; labels optional."""

    def __init__(
        self,
        data_shape: tuple[int, ...] = SHAPE,
        time: nn.Module | None = None,
        middle: nn.Module | None = None,
    ):
        super().__init__()
        self.time = time or Time()
        self.emb = nn.Linear(2, 8)
        self.first = nn.Conv2d(data_shape[0], 8, 3, padding=1)
        self.middle = middle or Activation()
        self.last = nn.Conv2d(8, data_shape[0], 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.first(x) + self.emb(self.time(t))[:, :, None, None]
        return self.last(self.middle(h))


class Bfloat16Time(Time):
    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t.bfloat16().to(t.dtype))


class IntegerTime(Time):
    def forward(self, t: Tensor) -> Tensor:
        return super().forward((t * 1000).long() / 1000).to(t.dtype)


class DetachedTime(Time):
    def forward(self, t: Tensor) -> Tensor:
        return super().forward(t.detach())


class WeightWrite(nn.Module):
    """EDM2's forced weight normalisation, in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.weight.copy_(F.normalize(self.weight, dim=1))
        return torch.einsum("bchw,dc->bdhw", x, self.weight)


class DataWrite(WeightWrite):
    """The same by .data, which leaves no trace in the tensor's version: exchanged, or copied into."""

    def __init__(self, exchange: bool) -> None:
        super().__init__()
        self.exchange = exchange

    def forward(self, x: Tensor) -> Tensor:
        new = F.normalize(self.weight.data, dim=1) * 1.5
        if self.exchange:
            self.weight.data = new
        else:
            self.weight.data.copy_(new)
        return torch.einsum("bchw,dc->bdhw", x, self.weight)


class BatchNormFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, None, None, training=True)


class NotFinite(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.abs() - 1).log()


class Altered(Sound):
    """Its output, changed at the end."""

    def __init__(self, change: Any) -> None:
        super().__init__()
        self.change = change

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.change(super().forward(x, t))  # type: ignore[no-any-return]


class PrivateDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def __deepcopy__(self, memo: Any) -> PrivateDropout:
        return type(self)()

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape[:2], generator=self.generator) > 0.5)[:, :, None, None] * 2


class NoDerivativeOp(nn.Module):
    """torch.igamma has no forward derivative."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.igamma(torch.full_like(x, 2.0), torch.sigmoid(x))


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradients[0]


class CustomFunction(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _Square.apply(x)  # type: ignore[no-any-return]


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * 2


class SilentCustomFunction(nn.Module):
    """It saves nothing, so nothing fails: its graph is lost without a word."""

    def forward(self, x: Tensor) -> Tensor:
        return Straight.apply(x)  # type: ignore[no-any-return]


class ReadsNumber(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().max().item()


class Detached(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(x.detach())


class InputWrite(Sound):
    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5), t)


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(7)


# fault -> the network, the module to be named
PLANTED: dict[str, tuple[nn.Module, str]] = {
    "batch_norm": (Sound(middle=nn.Sequential(nn.SiLU(), nn.BatchNorm2d(8))), "middle.1"),
    "weight_write": (Sound(middle=WeightWrite()), "middle"),
    "rounded_time": (Sound(time=Bfloat16Time()), "time"),
    "lost_derivative": (Sound(time=DetachedTime()), "time"),
    "private_generator": (Sound(middle=PrivateDropout()), "middle"),
    "no_derivative": (Sound(middle=nn.Sequential(nn.SiLU(), NoDerivativeOp())), "middle.1"),
}

MORE: dict[str, tuple[nn.Module, str, str]] = {
    "integer time": (Sound(time=IntegerTime()), "rounded_time", "time"),
    "custom function": (Sound(middle=CustomFunction()), "no_derivative", "middle"),
    "silent custom function": (Sound(middle=SilentCustomFunction()), "no_derivative", "middle"),
    "number": (Sound(middle=ReadsNumber()), "number", "middle"),
    "detached features": (Sound(middle=Detached()), "lost_derivative", "middle"),
    "input write": (InputWrite(), "input_write", ""),
    "exchanged weight": (Sound(middle=DataWrite(True)), "weight_write", "middle"),
    "weight copied by data": (Sound(middle=DataWrite(False)), "weight_write", "middle"),
    "batch norm as a function": (Sound(middle=BatchNormFunction()), "batch_norm", "middle"),
    "not finite": (Sound(middle=NotFinite()), "output", "middle"),
    "tuple": (Altered(lambda y: (y, y)), "output", ""),
    "none": (Altered(lambda y: None), "output", ""),
    "shape": (Altered(lambda y: y[:, :1]), "output", ""),
    "no gradient": (Altered(lambda y: y.detach()), "lost_derivative", ""),
    "fails": (Sound(middle=Fails()), "error", "middle"),
}
