"""The command `trigflow`: parses the command line, runs the command, and reports errors in one line.

Exit codes: 0 success, 2 a user error (one line on stderr), 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from trigflow.commands import (
    bench,
    data,
    demo,
    doctor,
    evaluate,
    info,
    listing,
    plan,
    reconstruct,
    sample,
    study,
    train,
    train_classifier,
)
from trigflow.commands.command import Command
from trigflow.system.cache import lend_to_libraries
from trigflow.system.errors import OwnMistake, UserError, did_you_mean, one_of, printable
from trigflow.system.launch import is_main
from trigflow.system.version import __version__

COMMANDS: dict[str, Command] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        *(demo, listing, info, data, plan, train, reconstruct, sample, evaluate, study, bench, doctor),
        train_classifier,
    )
}

# Errors of the operating system, and what to do about them.
_REFUSALS = {
    errno.ENOMEM: "not enough memory: use smaller sizes, or another machine",
    errno.ENOSPC: "no space left on the device: free some, or choose another --out",
    errno.EDQUOT: "the disk quota is exceeded: free some space, or choose another --out",
    errno.EACCES: "no permission: choose another place, or change the permissions",
    errno.EPERM: "not permitted: choose another place, or change the permissions",
    errno.EROFS: "the file system is read-only: choose another --out",
    errno.ENOENT: "no such file or folder: check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder: check the path",
    errno.EISDIR: "it is a folder, but a file is expected: check the path",
    errno.EEXIST: "it exists already: choose another name",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}


# What PyTorch says, in a RuntimeError or TypeError, of sizes that are too large.
_NO_MEMORY = (
    "allocate memory",
    "DefaultCPUAllocator",
    "out of memory",
    "Storage size calculation overflowed",
    "integer multiplication overflow",
    "Overflow when unpacking long",
)


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see: {self.prog} --help)")


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line; tests pin its flags."""
    parser = Parser(
        prog="trigflow",
        description="Continuous-time consistency models: train a teacher, distil it, sample in one or two steps.",
        epilog="example: trigflow sample digits --steps 2 --out digits.png",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug", action="store_true", help="show the traceback of an error (goes before COMMAND)"
    )
    parser.add_argument("--version", action="version", version=f"trigflow {__version__}")
    verbs = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS.values():
        verb = verbs.add_parser(
            command.name,
            help=command.summary,
            description=command.summary,
            epilog=f"example: {command.example}",
            allow_abbrev=False,
        )
        command.add_arguments(verb)
        verb.set_defaults(flags=[flag for action in verb._actions for flag in action.option_strings])
    return parser


def verbs(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parser of every command."""
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(subparsers.choices)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; overrides (key=value) may appear anywhere after the recipe.

    Raises:
        UserError: an unknown command or flag, or an invalid value.
    """
    if argv and not argv[0].startswith("-"):
        one_of("command", argv[0], COMMANDS)
    args, rest = build_parser().parse_known_args(argv)
    for word in rest:
        if word.startswith("-") or not hasattr(args, "overrides"):
            flag = word.split("=")[0]
            raise UserError(
                f"trigflow {args.command}: unknown argument '{word}'{did_you_mean(flag, args.flags)}"
            )
        args.overrides.append(word)
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own) and return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    debug = bool(words) and words[0] == "--debug"
    lend_to_libraries()
    _suit_stderr()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes need not be UTF-8

    def work() -> int:
        args = parse(words)
        return COMMANDS[args.command].run(args)

    return run_and_report_errors(work, debug)


def _suit_stderr() -> None:
    """Where nobody looks at stderr, bars say a line now and then, and nothing of what is soon over."""
    if sys.stderr is None:  # closed, as under some supervisors
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, which is the process's
    if not sys.stderr.isatty():
        for name in ("DELAY", "MININTERVAL", "MAXINTERVAL"):  # tqdm's defaults, before it is imported
            os.environ.setdefault(f"TQDM_{name}", "30")


def run_and_report_errors(work: Callable[[], int], debug: bool = False) -> int:
    """The exit code of some work, whose errors are reported in one line; of several processes, by the first."""
    try:
        code = work()
        if sys.stdout is not None:  # closed, as under some supervisors
            sys.stdout.flush()
    except UserError as mistake:
        if debug:
            traceback.print_exc()
        return _complain(" ".join(str(mistake).split()), by_all=isinstance(mistake, OwnMistake))
    except KeyboardInterrupt as stop:  # a training says how to go on
        _complain(str(stop) or "stopped")
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as in `trigflow list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as refusal:
        if refusal.errno not in _REFUSALS:
            raise
        return _complain(f"'{refusal.filename or 'output'}': {_REFUSALS[refusal.errno]}")
    except (MemoryError, RuntimeError, TypeError) as error:
        if not _is_lack_of_memory(error):
            raise
        return _complain(
            "not enough memory: use smaller sizes (samples, batch, network, data), or another machine",
            by_all=True,
        )
    return code


def _is_lack_of_memory(error: Exception) -> bool:
    """Whether NumPy or PyTorch could not get the memory that they asked for (PyTorch is not imported here)."""
    return isinstance(error, MemoryError) or any(words in str(error) for words in _NO_MEMORY)


def _complain(line: str, by_all: bool = False) -> int:
    """Of several processes, only the first prints, unless each has an error of its own."""
    if is_main() or by_all:
        print(f"trigflow: {printable(line)}", file=sys.stderr, flush=True)
    else:
        time.sleep(1)  # torchrun stops all processes as soon as one has ended: the first must have spoken
    return 2
