"""Files and folders: atomic writes, and errors of the file system in one line."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trigflow.system.errors import UserError

LOCK = ".lock"  # in a folder that one process at a time writes

_UNSUSPECTED_BYTES, _MOST_PACKED = 2**28, 250


class DamagedFile(Exception):
    """The file is truncated or was changed."""


@contextlib.contextmanager
def clear_os_errors(action: str, path: Path) -> Iterator[None]:
    """Turns an error of the file system (no space, no permission) into one line: "cannot <action> <path>: ..."."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot {action} {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when it is left without an error, flushed to the disk; else it is gone.

    Raises:
        OSError: no space, no permission, no such folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing.

    Raises:
        UserError: no space, no permission, no such folder.
    """
    with clear_os_errors("write", path), replacing(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Makes a rename in the folder last (Windows keeps no handle of a folder: there the rename alone must do)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: object) -> None:
    """Indented JSON, atomically."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """JSON data.

    Raises:
        UserError: no such file, or not JSON.
    """
    with clear_os_errors("read", path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # also a number of thousands of digits, or brackets without end
        raise UserError(f"{path} is damaged: it does not hold JSON") from None


def sha256_of(path: Path) -> str:
    """In hexadecimal digits.

    Raises:
        UserError: it cannot be read.
    """
    must_be_regular(path)
    with clear_os_errors("read", path), path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def must_be_regular(path: Path) -> None:
    """What is there, if anything: the read of a pipe or a device may never end.

    Raises:
        UserError: it is no file of the disk.
    """
    with clear_os_errors("read", path):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file (but a folder, a pipe or a device): give a file")


def is_bomb(size: int, packed: int) -> bool:
    """Whether `packed` bytes claim to hold so much that they were made to fill the memory (deflate packs 1000 to 1)."""
    return size > _UNSUSPECTED_BYTES and size > _MOST_PACKED * packed


def make_folder(path: Path) -> None:
    """The folder and those above it.

    Raises:
        UserError: it cannot be made.
    """
    with clear_os_errors("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def must_be_folder(path: Path) -> None:
    """Of a folder, there already or to be made.

    Raises:
        UserError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder: choose another --out")


def must_be_writable(path: Path) -> None:
    """Of a folder, there already or to be made, before the work whose results it is to hold.

    Raises:
        UserError: it is a file, or lies below one, or nothing may be written there.
    """
    with clear_os_errors("write", path):
        nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    must_be_folder(path)
    if not nearest.is_dir():
        raise UserError(f"cannot make the folder {path}: {nearest} is a file; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission in {nearest}; choose another --out")


def must_be_new(path: Path) -> None:
    """Of what is made as a whole.

    Raises:
        UserError: there is something of that name.
    """
    if path.exists():
        raise UserError(f"{path} already exists: choose another --out, or remove it")


def is_leftover(name: str) -> bool:
    """Whether a file of that name is what a killed start may leave: the lock, or a half-written file."""
    return name == LOCK or (name.startswith(".") and name.endswith(".tmp"))


def is_occupied(path: Path, but: Callable[[str], bool] = lambda name: False) -> bool:
    """Whether there is a folder with something in it, other than what `but` names.

    Raises:
        UserError: it cannot be read.
    """
    with clear_os_errors("read", path):
        return path.is_dir() and any(not but(entry.name) for entry in path.iterdir())


@contextlib.contextmanager
def locked(path: Path, complaint: str) -> Iterator[None]:
    """Holds a lock until the block ends, or the process, however it ends.

    Args:
        path: of the lock, a file that may stay.
        complaint: where another process holds it.

    Raises:
        UserError: the complaint; or the file cannot be written.
    """
    from filelock import FileLock, Timeout  # not with `--help`, which needs none

    lock = FileLock(path, timeout=0)
    with clear_os_errors("write", path):
        try:
            lock.acquire()
        except Timeout:
            raise UserError(complaint) from None
    try:
        yield
    finally:
        lock.release()
