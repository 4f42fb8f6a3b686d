"""The rank of this process among those that torchrun has started, from the environment, without PyTorch."""

from __future__ import annotations

import os

from trigflow.system.errors import UserError


def place(name: str, alone: int) -> int:
    """The value of RANK, WORLD_SIZE, LOCAL_RANK or LOCAL_WORLD_SIZE, set by torchrun; `alone` without torchrun.

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
    """Whether this is the main process, which prints and writes files; a single process always is.

    So is a process with RANK, which the shells of a cluster's containers have, but without LOCAL_RANK of a launcher.
    """
    rank = os.environ.get("RANK", "")
    return not is_launched() or "LOCAL_RANK" not in os.environ or not rank.isdecimal() or int(rank) == 0
