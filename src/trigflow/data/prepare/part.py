"""The folder of a run that writes much and may be stopped: all content in one file, a line of JSON for each entry."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trigflow.system.errors import UserError
from trigflow.system.files import LOCK, is_occupied, locked, must_be_new


class Unfit(UserError):
    """What ends a run for good: the same images and options end it again, so that its part is of no use."""


def stopped_by(damage: UserError) -> UserError:
    """The error of a damaged image that is not left out, for runs that may leave it out."""
    return UserError(f"{damage}; --skip-damaged leaves it out, and --resume keeps what is done before it")


class Part:
    """`out`.part, which stands beside `out` until that is whole, and is held by one process at a time.

    A line is written after its content, so that what the lines tell of is there, also after `kill -9`. A part without
    any line, or of a run that ended by Unfit, is removed.

    Args:
        out: what will be made of the part.
        settings: JSON data that must be the same for a run to go on.
        resume: go on with the part that is there.
        name: of the file of contents.
        reserved: bytes at the start of that file that are left free.
        group: entries that belong together: a part goes on after the last whole group.

    Attributes:
        lines: of the entries that are done: {"name": ..., "length": bytes of its content}, and "transparent": true of
            pictures that had transparent pixels.

    Raises (as a context):
        UserError: there is a part and it is in use, is not to be gone on with, is damaged or of other settings.
    """

    def __init__(
        self, out: Path, settings: dict[str, Any], resume: bool, name: str, reserved: int = 0, group: int = 1
    ) -> None:
        self.out, self.settings, self.reserved, self.group = out, settings, reserved, group
        self.resume = resume
        self.folder = out.with_name(out.name + ".part")
        self.content, self.index = self.folder / name, self.folder / "index.jsonl"
        self.lines: list[dict[str, Any]] = []
        self._open = contextlib.ExitStack()  # the lock and, within it, the files
        self._files = contextlib.ExitStack()

    def __enter__(self) -> Part:
        left = (LOCK, self.content.name)  # what a start that was killed may leave
        if not self.index.exists() and is_occupied(self.folder, but=lambda name: name in left):
            raise UserError(f"{self.folder} holds no interrupted run: remove it, or choose another --out")
        self.folder.mkdir(exist_ok=True)
        with contextlib.ExitStack() as opened:
            opened.enter_context(
                locked(
                    self.folder / LOCK,
                    f"{self.folder} is in use by another process: choose another --out, or stop that process",
                )
            )
            must_be_new(self.out)  # that process may just have ended
            opened.enter_context(self._files)
            self._begin()
            self._open = opened.pop_all()
        return self

    def _begin(self) -> None:
        whole = self._restore() if self.index.exists() else 0
        self._content_file: BinaryIO = self._files.enter_context(self.content.open("ab"))
        self._content_file.truncate(self.reserved + sum(line["length"] for line in self.lines))
        self._index_file: BinaryIO = self._files.enter_context(self.index.open("ab"))
        self._index_file.truncate(whole)
        if not whole:
            self._index_file.write((json.dumps(self.settings) + "\n").encode())
            self._index_file.flush()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        with self._open:
            self.close()
            if error is not None and (not self.lines or isinstance(error, Unfit)):
                self.remove()

    def _restore(self) -> int:
        """Reads the lines whose contents are there; returns how many bytes they and the head take, 0 without lines."""
        there = self.content.stat().st_size - self.reserved if self.content.exists() else 0
        rows = [row for row in self.index.read_bytes().splitlines(keepends=True) if row.endswith(b"\n")]
        try:
            head, *lines = [json.loads(row) for row in rows] or [None]
        except (ValueError, RecursionError):
            raise self._damaged() from None
        for line in lines:
            if not (isinstance(line, dict) and isinstance(line.get("name"), str)):
                raise self._damaged()
            if type(line.get("length")) is not int or line["length"] < 0:
                raise self._damaged()
            there -= line["length"]
            if there < 0:
                break
            self.lines.append(line)
        if not self.lines:
            return 0
        if head != self.settings:
            raise UserError(
                f"{self.folder} was made from other images or with other options: remove it, or choose another --out"
            )
        if not self.resume:
            raise UserError(
                f"{self.folder} belongs to an interrupted run: continue it with --resume, or remove it"
            )
        del self.lines[len(self.lines) - len(self.lines) % self.group :]
        return sum(map(len, rows[: 1 + len(self.lines)]))

    def _damaged(self) -> UserError:
        return UserError(f"{self.folder} is damaged: remove it")

    def add(self, name: str, content: bytes, transparent: bool = False) -> None:
        """One entry."""
        self._content_file.write(content)
        self._content_file.flush()
        line = {"name": name, "length": len(content)} | ({"transparent": True} if transparent else {})
        self._index_file.write((json.dumps(line) + "\n").encode())
        self._index_file.flush()
        self.lines.append(line)

    @property
    def transparent(self) -> int:
        """How many of the pictures had transparent pixels."""
        return sum("transparent" in line for line in self.lines)

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """Name and content of each entry."""
        with self.content.open("rb") as file:
            file.seek(self.reserved)
            for line in self.lines:
                yield line["name"], file.read(line["length"])

    def close(self) -> None:
        """No more entries; the lock stays."""
        self._files.close()

    def remove(self) -> None:
        """The folder with all that is in it, once `out` is whole."""
        shutil.rmtree(self.folder)


@contextlib.contextmanager
def resumable(out: Path) -> Iterator[None]:
    """Around the making of `out` in a Part: Ctrl-C and errors of the disk say that it can be gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped; progress is saved: add --resume to the same command to continue"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; progress is saved: continue with --resume"
        ) from None
