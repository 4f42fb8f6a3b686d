"""The place of this process among those that torchrun has started, from its environment; without PyTorch."""

from __future__ import annotations

import os

from trigflow.system.errors import UserError


def place(name: str, alone: int) -> int:
    """One of RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, as torchrun sets them; `alone` without torchrun.

    Raises:
        UserError: it is no number, or torchrun's other variables are missing.
    """
    if not is_launched():
        return alone
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UserError(
            f"{name}={text!r} in the environment is no number: start several processes with torchrun"
        )
    return int(text)


def is_launched() -> bool:
    """Whether torchrun has started this process."""
    return "MASTER_ADDR" in os.environ and "RANK" in os.environ


def is_main() -> bool:
    """Whether this process is the one that speaks; a single process always is.

    So is one that has a RANK, as the shells of a cluster's containers do, but no LOCAL_RANK, which launchers set.
    """
    rank = os.environ.get("RANK", "")
    return not is_launched() or "LOCAL_RANK" not in os.environ or not rank.isdecimal() or int(rank) == 0
