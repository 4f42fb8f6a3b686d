"""Where to compute, and in which precision."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch

from trigflow.errors import UserError, did_you_mean

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

    With a device of CUDA, cuDNN's convolutions of float32 are no longer TF32, as torch has them by default: from g most
    of F and its derivative cancels, and ten bits are no float32.

    Raises:
        UserError: no such name, or this machine has no such device.
    """
    device = name if isinstance(name, torch.device) else _named(name)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
    return device


def _named(name: str) -> torch.device:
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if _available(kind))
    kind, _, number = name.partition(":")
    if kind not in DEVICES or (number and not number.isdecimal()):
        raise UserError(
            f"unknown device '{name}'{did_you_mean(name, DEVICES)}; there are: {', '.join(DEVICES)}"
        )
    if not _available(kind) or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise UserError(f"this machine has no device '{name}': take --device auto or --device cpu")
    return torch.device(name)


def wait_for(device: torch.device) -> None:
    """Returns when a GPU has done all that it was asked for, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_precision(precision: str) -> None:
    """Raise a UserError unless it is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise UserError(
            f"unknown precision '{precision}'{did_you_mean(precision, PRECISIONS)}; there are: {', '.join(PRECISIONS)}"
        )


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
