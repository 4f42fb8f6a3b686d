"""Writes docs/commands.md from the parser: `make docs`. A test holds the file up to date."""

from __future__ import annotations

import argparse
from pathlib import Path

from trigflow import cli

TARGET = Path(__file__).parent / "commands.md"


def describe(action: argparse.Action) -> str:
    """One argument as a line of a list."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    choices = f" ({', '.join(map(str, action.choices))})" if action.choices else ""
    return f"- `{name}`{choices}: {action.help}{'; required' if action.required and action.option_strings else ''}"


def commands() -> str:
    """Every verb with its arguments."""
    parts = ["# Commands", "Made by `make docs` from the parser: `trigflow COMMAND --help` says the same."]
    for name, parser in cli.verbs(cli.build_parser()).items():
        lines = [describe(action) for action in parser._actions if action.dest != "help"]
        command = cli.COMMANDS[name]
        parts += [
            f"## {name}",
            f"{command.summary[0].upper()}{command.summary[1:]}.",
            "\n".join(lines),
            f"```\n{command.example}\n```",
        ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(commands())
