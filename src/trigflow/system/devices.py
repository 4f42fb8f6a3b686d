"""Devices and precision of computations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trigflow.system.errors import UserError, one_of

DEVICES = ("auto", "cpu", "cuda", "mps")

Precision = Literal["float32", "bfloat16", "float16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


def _available(name: str) -> bool:
    if name == "cuda":
        return torch.cuda.is_available()
    if name == "mps":
        return torch.backends.mps.is_available()
    return True


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device of this name: "auto" is the first available of cuda, mps, cpu; "cuda:1" is one of several.

    Raises:
        UserError: the name is unknown, or this machine has no such device.
    """
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _available(kind))
    kind, _, number = name.partition(":")
    one_of("device", kind if not number or number.isdecimal() else name, DEVICES)
    if not _available(kind) or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise UserError(f"this machine has no device '{name}': use --device auto or --device cpu")
    return torch.device(name)


# The low half of SplitMix64's increment: odd, so that no two high words give the same.
_GOLDEN_LOW = 0x7F4A7C15


def generator_seed(seed: int) -> int:
    """A seed in [0, 2^32) for torch's own generators, since the CPU's uses only 32 bits.

    Seeds in that range are unchanged; seeds that differ only in the high 32 bits give different results.

    Args:
        seed: any int in [-2^63, 2^63).
    """
    return (seed ^ (seed >> 32) * _GOLDEN_LOW) & 0xFFFFFFFF


def wait_for(device: torch.device) -> None:
    """Synchronises with a GPU, for timing."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; from the CPU to a GPU by way of pinned memory, so that the caller does not wait."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def check_precision(precision: str) -> None:
    """Raise a UserError unless it is one of PRECISIONS."""
    one_of("precision", precision, PRECISIONS)


@contextmanager
def true_float32() -> Iterator[None]:
    """Switches TF32 off for matrix products and convolutions inside; on exit torch's settings are restored.

    By default torch allows TF32 in cuDNN's convolutions, whose ten bits are too few for g, in which most of F and its
    derivative cancels. Also a decorator, but not of generator functions.
    """
    backends: Any = torch.backends
    places: list[Any] = [
        *(backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul)
    ]
    former = [place.fp32_precision for place in places]
    products, convolutions = _settings_of_old()
    if products is not None:
        torch.set_float32_matmul_precision("highest")
    if convolutions is not None:
        backends.cudnn.allow_tf32 = False
    for place in places:
        place.fp32_precision = "ieee"
    try:
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for place, precision in zip(places, former, strict=True):
            place.fp32_precision = precision


def _settings_of_old() -> tuple[str | None, bool | None]:
    """The settings for products and convolutions in torch's older interface, which exists beside `fp32_precision`.

    None: the caller has used the newer interface, with settings that the older cannot express.
    """
    try:
        products = torch.get_float32_matmul_precision()
    except RuntimeError:
        products = None
    try:
        convolutions = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        convolutions = None
    return products, convolutions


@contextmanager
def generators_kept(device: torch.device) -> Iterator[None]:
    """Restores, on exit, the states of torch's generators that a computation on the device uses."""
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds the generators of `generators_kept`, and no others (torch.manual_seed seeds those of every device).

    Args:
        seed: any int in [-2^63, 2^63).
        device: device of the computation.
    """
    seed = generator_seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)


def products_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products and convolutions inside have this precision, by torch.autocast; weights stay in float32.

    Raises:
        UserError: the precision is unknown.
    """
    check_precision(precision)
    if precision == "float32":
        return without_autocast(device)
    return torch.autocast(device.type, torch.bfloat16 if precision == "bfloat16" else torch.float16)


def autocast_is_on(device: torch.device) -> bool:
    """Whether products on the device are in half precision; never on "meta", which autocast does not support."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Switches autocast off: operations inside have the precision of their operands."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
