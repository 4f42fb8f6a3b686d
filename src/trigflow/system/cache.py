"""The folder of what may be computed again: decoded images, statistics of real data, scores."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import sys
import tempfile
from pathlib import Path

from trigflow.system.errors import UserError
from trigflow.system.launch import is_main

_SET = "set TRIGFLOW_CACHE to a folder of your own"


def cache_folder() -> Path:
    """$TRIGFLOW_CACHE, else $XDG_CACHE_HOME/trigflow, else ~/.cache/trigflow, else a folder for temporary files.

    The last is taken where the user has no home that can be written (an unknown uid in a container, an empty HOME,
    "/"), and one line on stderr says so, once. A folder that a variable names need not exist.

    Raises:
        UserError: the folder for temporary files is not the user's.
    """
    if chosen := os.environ.get("TRIGFLOW_CACHE"):
        return Path(chosen)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "trigflow"
    home = _home()
    if home is not None and _is_made(folder := home / ".cache" / "trigflow"):
        return folder
    return _said(_temporary())


def lend_to_libraries() -> None:
    """Where no home can be written, matplotlib, Triton and huggingface_hub keep their files among temporary ones, too.

    Else they would warn, fail, or make a folder "~" where the process runs. What the user has set stays.
    """
    home = _home()
    if home is not None and os.access(home, os.W_OK | os.X_OK):
        return
    with contextlib.suppress(UserError):
        for name in ("MPLCONFIGDIR", "TRITON_HOME", "HF_HOME"):
            os.environ.setdefault(name, str(_temporary()))


def _home() -> Path | None:
    """The user's home, if it is a folder other than "/", which is where containers put a user without one."""
    home = os.environ.get("HOME")
    if home == "":  # `Path.home` would take it for "/"
        return None
    with contextlib.suppress(RuntimeError):  # an unknown uid without HOME
        found = Path.home()
        return found if found.is_absolute() and found != Path(found.anchor) and found.is_dir() else None
    return None


def _is_made(folder: Path) -> bool:
    """Whether a folder can be written; it is made, where it does not exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


@functools.cache
def _temporary() -> Path:
    """A folder of this user among temporary files, which is made, since all users may write beside it.

    Raises:
        UserError: it cannot be made, or another user has made it.
    """
    name = f"trigflow-{os.getuid()}" if hasattr(os, "getuid") else "trigflow"
    try:
        folder = Path(tempfile.gettempdir()) / name
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UserError(
            f"no home and no folder for temporary files can be written ({error}): {_SET}"
        ) from None
    if not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
        raise UserError(f"{folder} belongs to another user: {_SET}")
    return folder


@functools.cache
def _said(folder: Path) -> Path:
    if is_main():
        print(f"no home that can be written: the cache is {folder} ($TRIGFLOW_CACHE)", file=sys.stderr)
    return folder
