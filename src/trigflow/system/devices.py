"""Where to compute, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch

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
    """The device for a name: "auto" is the first of cuda, mps, cpu that is there; "cuda:1" names one of several.

    Raises:
        UserError: no such name, or this machine has no such device.
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
    """A seed in [0, 2^32) for torch's own generators, of which that of the CPU reads no more bits.

    A seed in that range stays; those that differ in their high word alone become different ones.

    Args:
        seed: any int in [-2^63, 2^63).
    """
    return (seed ^ (seed >> 32) * _GOLDEN_LOW) & 0xFFFFFFFF


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that it was asked for, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_precision(precision: str) -> None:
    """Raise a UserError unless it is one of PRECISIONS."""
    one_of("precision", precision, PRECISIONS)


@contextmanager
def true_float32() -> Iterator[None]:
    """Products and convolutions of float32 within are taken in float32, and the caller's settings of torch come back.

    By default torch lets cuDNN's convolutions take TF32: from g most of F and its derivative cancels, and ten bits are
    no float32. Also a decorator, of functions that are no generators.
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
    """Of products and of convolutions, which torch's older interface keeps beside `fp32_precision`.

    None: the caller has used the newer one, and what the older would say contradicts it: torch refuses to tell.
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
    """The generators of torch that a computation on the device draws from are in the end as they were."""
    mps = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            if mps is not None:
                torch.mps.set_rng_state(mps)


def seed_generators(seed: int, device: torch.device) -> None:
    """Begin those of `generators_kept` with a seed, and no others (torch.manual_seed begins that of every device).

    Args:
        seed: any int in [-2^63, 2^63).
        device: of the computation.
    """
    seed = generator_seed(seed)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    if device.type == "mps":
        torch.mps.manual_seed(seed)


def products_in(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products and convolutions within are taken in this precision, by torch.autocast.

    Weights keep theirs, and so does what is computed of tensors that come from elsewhere.

    Raises:
        UserError: no such precision.
    """
    check_precision(precision)
    if precision == "float32":
        return without_autocast(device)
    return torch.autocast(device.type, torch.bfloat16 if precision == "bfloat16" else torch.float16)


def autocast_is_on(device: torch.device) -> bool:
    """Whether products on the device are taken in half precision; never on "meta", which autocast does not know."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """What is computed within keeps the precision of its operands."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
