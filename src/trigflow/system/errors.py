"""Errors of the user, reported in one line."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator


class UserError(ValueError):
    """An error that the user can fix: one line that says what is wrong, where, and what to do.

    The command prints it on stderr without a traceback and exits with code 2.
    """


class Diverged(UserError):
    """A training whose loss or gradient is no longer finite, or a model whose samples are not."""


class OwnMistake(UserError):
    """An error of one process only, which prints it itself; otherwise the main process prints for all."""


class LostProcess(OwnMistake):
    """Another process of the run has ended; each remaining one reports it."""


@contextlib.contextmanager
def errors_reported(
    what: str,
    name: str,
    outcome: str = "cannot be made",
    kind: type[UserError] = UserError,
    spared: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[None]:
    """Reports in one line what user-defined code raises inside; errors of the parts of this package are unchanged.

    Args:
        what: the key of the part in a recipe ("network").
        name: of the part; that of the user's own is "package.module:name".
        outcome: what its error means.
        kind: of the error that is raised.
        spared: whether an error is none of the code's, and unchanged.

    Raises:
        UserError: of this kind, with the type and the message of the error.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if ":" not in name or spared(error):
            raise
        raise kind(f"{what} '{name}' {outcome}: {type(error).__name__}: {error}") from error


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """A hint to append to an error: " (did you mean 'x'?)", or "" when nothing is close."""
    matches = difflib.get_close_matches(word, list(options), n=1, cutoff=0.5)
    return f" (did you mean '{matches[0]}'?)" if matches else ""


def one_of(what: str, name: str, options: Iterable[str], where: str = "") -> str:
    """The name, if it is one of the options.

    Args:
        what: it is the name of, for the error.
        name: as it was given.
        options: known names.
        where: it stands, as the start of the error.

    Raises:
        UserError: it is none of them; the line lists them.
    """
    known = list(options)
    if name not in known:
        raise UserError(
            f"{where}unknown {what} '{name}'{did_you_mean(name, known)}; there are: {', '.join(known)}"
        )
    return name


def printable(text: str) -> str:
    """Text from files made safe for a terminal: control characters are replaced by escape sequences."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
