"""What a damaged file makes its reader raise, as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors


@contextlib.contextmanager
def damage_told(path: Path, complaint: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turns what a reader raises into one line.

    Args:
        path: of the file.
        complaint: about its content, for the errors of `kinds`.
        kinds: what damage raises. An OSError is damage where it is one of them and does not come from the system.

    Raises:
        UserError: the complaint, or why the file cannot be read.
    """
    with clear_os_errors("read", path):
        try:
            yield
        except UserError:  # is a ValueError
            raise
        except kinds as error:
            if isinstance(error, OSError) and error.strerror:
                raise
            raise UserError(complaint) from None
