"""The folder of a run that writes much and may be stopped: all content in one file, a line of JSON for each entry."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from trigflow.errors import UserError


class Part:
    """`out`.part, which stands beside `out` until that is whole.

    A line is written after its content, so that what the lines tell of is there, also after `kill -9`.

    Args:
        out: what will be made of the part.
        settings: JSON data that must be the same for a run to go on.
        resume: go on with the part that is there.
        name: of the file of contents.
        reserved: bytes at the start of that file that are left free.
        group: entries that belong together: a part goes on after the last whole group.

    Attributes:
        lines: of the entries that are done: {"name": ..., "length": bytes of its content, ...}.

    Raises:
        UserError: there is a part and it is not to be gone on with, is damaged or of other settings.
    """

    def __init__(
        self,
        out: Path,
        settings: dict[str, Any],
        resume: bool,
        name: str,
        reserved: int = 0,
        group: int = 1,
    ) -> None:
        self.out, self.settings, self.reserved, self.group = out, settings, reserved, group
        self.folder = out.with_name(out.name + ".part")
        self.content, self.index = self.folder / name, self.folder / "index.jsonl"
        if self.folder.exists() and not resume:
            raise UserError(
                f"{self.folder} is of a run that was stopped: --resume goes on with it, or remove it"
            )
        self.lines: list[dict[str, Any]] = []

    def __enter__(self) -> Part:
        head = json.dumps(self.settings) + "\n"
        whole = self._restore() if self.index.exists() else 0
        self.folder.mkdir(exist_ok=True)
        self._content_file: BinaryIO = self.content.open("ab")
        self._content_file.truncate(self.reserved + sum(line["length"] for line in self.lines))
        self._index_file: BinaryIO = self.index.open("ab")
        self._index_file.truncate(whole)
        if not whole:
            self._index_file.write(head.encode())
            self._index_file.flush()
        return self

    def __exit__(self, *_: object) -> None:
        self._content_file.close()
        self._index_file.close()

    def _restore(self) -> int:
        """Reads the lines whose contents are there; returns how many bytes they and the head take."""
        there = self.content.stat().st_size - self.reserved if self.content.exists() else 0
        rows = [row for row in self.index.read_bytes().splitlines(keepends=True) if row.endswith(b"\n")]
        if not rows:
            return 0
        try:
            head, *lines = [json.loads(row) for row in rows]
        except ValueError:
            raise UserError(f"{self.folder} is damaged: remove it") from None
        if head != self.settings:
            raise UserError(f"{self.folder} is of other images or options: remove it, or give another --out")
        for line in lines:
            there -= line["length"]
            if there < 0:
                break
            self.lines.append(line)
        del self.lines[len(self.lines) - len(self.lines) % self.group :]
        return sum(map(len, rows[: 1 + len(self.lines)]))

    def add(self, name: str, content: bytes, **more: object) -> None:
        """One entry; `more` becomes part of its line."""
        self._content_file.write(content)
        self._content_file.flush()
        line = {"name": name, "length": len(content), **more}
        self._index_file.write((json.dumps(line) + "\n").encode())
        self._index_file.flush()
        self.lines.append(line)

    def remove(self) -> None:
        """The folder with all that is in it, once `out` is whole."""
        for left in self.folder.iterdir():
            left.unlink()
        self.folder.rmdir()


@contextlib.contextmanager
def kept(out: Path) -> Iterator[None]:
    """Around the making of `out` in a Part: Ctrl-C and errors of the disk say that it can be gone on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped, what is done is kept; the same command with --resume goes on"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; what is done is kept, --resume goes on"
        ) from None
