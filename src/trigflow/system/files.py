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

LOCK = ".lock"  # in a folder that only one process may write at a time

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
    """A temporary file that replaces `path`, flushed to disk, if the block ends without an error; else it is removed.

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
    """Writes a file atomically.

    Raises:
        UserError: no space, no permission, no such folder.
    """
    with clear_os_errors("write", path), replacing(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Flushes a folder, and so renames in it, to disk (not on Windows, which has no handles of folders)."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, data: object) -> None:
    """Writes indented JSON, atomically."""
    write_atomically(path, (json.dumps(data, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads JSON data.

    Raises:
        UserError: the file cannot be read, or is not JSON.
    """
    with clear_os_errors("read", path):
        content = path.read_bytes()
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # also a number of thousands of digits, or brackets without end
        raise UserError(f"{path} is damaged: it does not hold JSON") from None


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits.

    Raises:
        UserError: it cannot be read.
    """
    must_be_regular(path)
    with clear_os_errors("read", path), path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def must_be_regular(path: Path) -> None:
    """Checks that a path, if it exists, is a regular file: reading a pipe or a device may never end.

    Raises:
        UserError: it is not a regular file.
    """
    with clear_os_errors("read", path):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is no regular file (but a folder, a pipe or a device): give a file")


def is_bomb(size: int, packed: int) -> bool:
    """Whether `packed` bytes that decompress to `size` bytes are a decompression bomb (deflate reaches 1000 to 1)."""
    return size > _UNSUSPECTED_BYTES and size > _MOST_PACKED * packed


def make_folder(path: Path) -> None:
    """Makes a folder, and those above it.

    Raises:
        UserError: it cannot be made.
    """
    with clear_os_errors("make the folder", path):
        path.mkdir(parents=True, exist_ok=True)


def must_be_folder(path: Path) -> None:
    """Checks that a path is a folder, or does not exist.

    Raises:
        UserError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file, not a folder: choose another --out")


def must_be_writable(path: Path) -> None:
    """Checks that files can be written into a folder, existing or to be made, before long work is started.

    Raises:
        UserError: it is a file, or below a file, or there is no permission.
    """
    with clear_os_errors("write", path):
        nearest = next(one for one in (path, *path.absolute().parents) if one.exists())
    must_be_folder(path)
    if not nearest.is_dir():
        raise UserError(f"cannot make the folder {path}: {nearest} is a file; choose another --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write {path}: no permission in {nearest}; choose another --out")


def must_be_new(path: Path) -> None:
    """Checks that a path does not exist.

    Raises:
        UserError: it exists.
    """
    if path.exists():
        raise UserError(f"{path} already exists: choose another --out, or remove it")


def is_leftover(name: str) -> bool:
    """Whether a killed process may have left a file of this name: the lock, or an incomplete temporary file."""
    return name == LOCK or (name.startswith(".") and name.endswith(".tmp"))


def is_occupied(path: Path, but: Callable[[str], bool] = lambda name: False) -> bool:
    """Whether the folder exists and has entries other than those for which `but` is true.

    Raises:
        UserError: the folder cannot be read.
    """
    with clear_os_errors("read", path):
        return path.is_dir() and any(not but(entry.name) for entry in path.iterdir())


@contextlib.contextmanager
def locked(path: Path, complaint: str) -> Iterator[None]:
    """Holds a lock until the block or the process ends, also if it is killed.

    Args:
        path: path of the lock file, which is not removed.
        complaint: the error message if another process holds the lock.

    Raises:
        UserError: another process holds the lock, or the file cannot be written.
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
