"""A study's folder: what is finished is kept, and the same command goes on with the rest.

state.json says which study it is, cells/ holds what was measured (one small file each, there as a whole or not at
all), runs/ the trainings.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trigflow.system.config import first_difference
from trigflow.system.errors import UserError
from trigflow.system.files import is_occupied, make_folder, must_be_folder, read_json, write_json

STATE = "state.json"
PARTS = ("cells", "runs")

Cell = dict[str, Any]


class _Whole(Cell):
    """A cell from a file, which complains of what it lacks."""

    def __init__(self, path: Path, cell: Cell) -> None:
        super().__init__(cell)
        self._path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{self._path} is damaged (it holds no '{key}'): remove it, and it is measured again")


@dataclass(frozen=True)
class StudyFolder:
    """Where a study keeps what it has; made by `open_study`.

    Args:
        path: of the folder.
    """

    path: Path

    def cell_path(self, name: str) -> Path:
        """The file of a measurement."""
        return self.path / "cells" / f"{name}.json"

    def run_path(self, name: str) -> Path:
        """The folder of a training."""
        return self.path / "runs" / name

    def has(self, name: str) -> bool:
        """Whether a measurement is there."""
        return self.cell_path(name).exists()

    def read(self, name: str) -> Cell:
        """A measurement that is there.

        Raises:
            UserError: it is not there, or damaged.
        """
        path = self.cell_path(name)
        try:
            cell = read_json(path)
        except UserError as error:
            raise UserError(f"{error}; remove it, and it is measured again") from None
        if not isinstance(cell, dict):
            raise UserError(f"{path} is damaged: remove it, and it is measured again")
        return _Whole(path, cell)

    def cell(self, name: str, measure: Callable[[], Cell]) -> Cell:
        """A measurement: read where it is there, else taken and kept."""
        if not self.has(name):
            write_json(self.cell_path(name), measure())
        return self.read(name)


def open_study(path: Path, config: dict[str, Any]) -> StudyFolder:
    """The folder of a new study, or of one to go on with.

    Args:
        path: of the folder.
        config: all that the numbers depend on, as JSON data; a study that goes on must have the same.

    Raises:
        UserError: the folder holds something else, or a study of another configuration.
    """
    config = json.loads(json.dumps(config))  # tuples become lists, as they come back from the file
    must_be_folder(path)
    if (path / STATE).exists():
        stored = read_json(path / STATE)
        if not isinstance(stored, dict):
            raise UserError(f"{path / STATE} is damaged: it does not hold a study; choose another --out")
        key = first_difference(stored, config)
        if key is not None and _is_begun(path):
            raise UserError(f"{path} holds another study ('{key}' differs): choose another --out")
    elif is_occupied(path):
        raise UserError(f"{path} is not empty and holds no study: choose another --out")
    make_folder(path)
    # First: it makes the folder a study's, also where the start is killed.
    write_json(path / STATE, config)
    for part in PARTS:
        make_folder(path / part)
    return StudyFolder(path)


def _is_begun(path: Path) -> bool:
    """Whether there is anything that another configuration would spoil; a mistake told at once leaves nothing."""
    return any(is_occupied(path / part) for part in PARTS)
