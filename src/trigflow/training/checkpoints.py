"""The newest checkpoints of a run: a file each with one process, a folder with several; any number can resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, clear_os_errors
from trigflow.system.tensors import read_state, write_state
from trigflow.training.checkpoint_shards import read_shards, remove, write_shards


@dataclass(frozen=True)
class CheckpointFolder:
    """The newest checkpoints of a run.

    Args:
        folder: the folder with the checkpoints.
        keep: number of checkpoints to keep.
    """

    folder: Path
    keep: int = 3

    def paths(self) -> list[Path]:
        """All checkpoints, the newest first."""
        return sorted(self.folder.glob("nimg-*"), key=lambda path: path.name, reverse=True)

    def save(
        self,
        nimg: int,
        tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        world: World = SINGLE_PROCESS,
    ) -> Path:
        """Writes a checkpoint; removes the oldest beyond `keep`, and incomplete ones of a killed run."""
        name = f"nimg-{nimg:012d}"
        if world.is_single:
            path = self.folder / f"{name}.safetensors"
            write_state(path, tensors, state)
        else:
            path = self.folder / name
            write_shards(path, tensors, state, world)
        world.by_first(self._tidy)
        return path

    def _tidy(self) -> None:
        with clear_os_errors("tidy", self.folder):
            for old in [*self.paths()[self.keep :], *self.folder.glob(".*.tmp")]:
                remove(old)

    def load_newest(
        self, note: Callable[[str], object] = print, world: World = SINGLE_PROCESS
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact checkpoint, or None if there is none; damaged ones are reported by `note`.

        With several processes, each reads the whole of a file, or its shards of a folder.

        Raises:
            UserError: all checkpoints are damaged.
        """
        paths = [self.folder / name for name in world.first_names([path.name for path in self.paths()])]
        for path in paths:
            try:
                return read_shards(path, world) if path.is_dir() else _read_file(path, world)
            except DamagedFile as damage:
                if world.is_main:
                    note(f"checkpoint {path.name} is damaged ({damage}): falling back to the one before")
        if paths:
            raise UserError(f"every checkpoint in {self.folder} is damaged: start again with another --out")
        return None


def _read_file(path: Path, world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    damage: DamagedFile | None = None
    with world.together():
        try:
            found = read_state(path)
        except DamagedFile as error:
            damage = error
    if world.any(damage is not None):
        raise damage or DamagedFile("another process finds it so")
    return found
