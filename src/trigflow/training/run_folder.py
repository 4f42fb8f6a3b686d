"""A run's folder: recipe.json, metrics.jsonl, TensorBoard events, samples/, checkpoints/, the model."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trigflow.data.autoencoder import FOLDER, Decoder, copy_autoencoder
from trigflow.models.storage import read_card, save_model
from trigflow.recipes.schema import Recipe, with_current_names
from trigflow.system.config import first_difference, to_json, validate
from trigflow.system.distributed import World
from trigflow.system.errors import UserError
from trigflow.system.files import (
    LOCK,
    DamagedFile,
    clear_os_errors,
    is_leftover,
    is_occupied,
    locked,
    make_folder,
    must_be_folder,
    read_json,
    write_atomically,
    write_json,
)
from trigflow.system.tensors import read_state, write_state
from trigflow.training.checkpoints import CheckpointFolder
from trigflow.training.ema import EMASnapshot, reconstructed_weights

# Fields that may change when a run is resumed. Only its length affects the result, if a schedule depends on it.
FREE = (
    *("name", "train.total_nimg", "train.log_nimg", "train.checkpoint_nimg", "train.keep_checkpoints"),
    *("train.tensorboard", "sampling.grid_nimg", "sampling.grid_count", "sampling.flow_map_num"),
    "ema.snapshot_nimg",
)
MICROBATCH = "train.microbatch"  # changes the result by rounding


class RunFolder:
    """The folder of a run; made by `open_run`, which locks it.

    Args:
        path: path of the folder.
        keep_checkpoints: number of checkpoints to keep.
    """

    def __init__(self, path: Path, keep_checkpoints: int) -> None:
        self.path = path
        self.samples = path / "samples"
        self.snapshots = path / "snapshots"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = CheckpointFolder(path / "checkpoints", keep_checkpoints)

    def truncate_metrics(self, nimg: int) -> None:
        """Removes the lines after nimg images (and an incomplete one), so that a resumed run repeats none."""
        if not self.metrics.exists():
            return
        with clear_os_errors("read", self.metrics):
            lines = self.metrics.read_bytes().splitlines()
        kept = [line for line in lines if 0 <= _nimg_of(line) <= nimg]
        write_atomically(self.metrics, b"".join(line + b"\n" for line in kept))

    def keep_autoencoder(self, decoder: Decoder | None) -> None:
        """Copies the autoencoder of a latent model into the run's folder, if it is in the folder of the latents.

        Raises:
            UserError: no space, or it is not the autoencoder that made the latents.
        """
        if decoder is not None and decoder.folder.is_dir():
            decoder.check_digest()
            copy_autoencoder(decoder.folder, self.path / FOLDER)

    def save_snapshot(self, snapshot: EMASnapshot) -> None:
        """Saves an average for post-hoc reconstruction."""
        make_folder(self.snapshots)
        path = self.snapshots / f"nimg-{snapshot.nimg:012d}-std-{snapshot.ema_std:.3f}.safetensors"
        write_state(path, snapshot.tensors, {"nimg": snapshot.nimg, "ema_std": snapshot.ema_std})


def read_snapshots(run_dir: Path) -> list[EMASnapshot]:
    """The EMA snapshots of a run with ema.snapshot_nimg > 0, the oldest first.

    Raises:
        UserError: a snapshot is damaged or cannot be read.
    """
    snapshots = []
    for path in sorted((run_dir / "snapshots").glob("nimg-*.safetensors")):
        try:
            tensors, state = read_state(path)
        except DamagedFile as damage:
            raise UserError(f"{path} is damaged ({damage}): remove it to continue without it") from None
        if not isinstance(state.get("nimg"), int) or not isinstance(state.get("ema_std"), float):
            raise UserError(f"{path} is not a snapshot of this run: remove it to continue without it")
        snapshots.append(EMASnapshot(state["nimg"], state["ema_std"], tensors))
    return snapshots


def reconstruct(run_dir: Path | str, out: Path | str, ema_std: float, nimg: int | None = None) -> Path:
    """Writes the model of a run with an EMA of another length, reconstructed from its snapshots (arXiv 2312.02696).

    >>> reconstruct("runs/student", "runs/student-0.08", ema_std=0.08)

    Args:
        run_dir: a run with ema.kind "power" and ema.snapshot_nimg > 0.
        out: a new folder for the model.
        ema_std: relative standard deviation, in (0, 0.2886).
        nimg: time of the run, in images (default: the last snapshot's).

    Returns:
        The new folder.

    Raises:
        UserError: no snapshots, a number out of range, or a folder that is in use.
    """
    run_dir, out = Path(run_dir), Path(out)
    snapshots = read_snapshots(run_dir)
    tensors = reconstructed_weights(snapshots, ema_std, nimg)
    if is_occupied(out):
        raise UserError(f"{out} is in use: choose another folder")
    card = read_card(run_dir)
    make_folder(out)
    if (run_dir / FOLDER).is_dir():
        copy_autoencoder(run_dir / FOLDER, out / FOLDER)
    nimg = max(snapshot.nimg for snapshot in snapshots) if nimg is None else nimg
    save_model(out, tensors, replace(card, nimg=nimg, ema=f"{ema_std:.3f}"))
    return out


def _nimg_of(line: bytes) -> int:
    """The nimg of a line of metrics.jsonl, -1 if it is damaged."""
    try:
        return int(json.loads(line)["nimg"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return -1


@contextlib.contextmanager
def open_run(
    path: Path, recipe: Recipe, resume: bool, by_batch: bool = False, note: Callable[[str], object] = print
) -> Iterator[RunFolder]:
    """Opens the folder of a new run, or of a run to resume, locked against other processes.

    Args:
        path: path of the folder.
        recipe: recipe of the run; a resumed run must have the same, except for the fields in FREE and train.microbatch.
            It replaces the stored recipe.
        resume: resume the run in the folder (start a new run if there is none).
        by_batch: the loss of an image depends on the others in its microbatch, so that its size must not change.
        note: called with a message if a resumed run is no longer bit for bit the same.

    Raises:
        UserError: the folder is in use, contains something else or a run of another recipe, or cannot be written.
    """
    recipe_path = path / "recipe.json"
    must_be_folder(path)
    _check_free(path, recipe_path, resume)
    former = _stored_recipe(recipe_path) if recipe_path.exists() else to_json(recipe)
    _check_same(path, former, to_json(recipe), by_batch)
    make_folder(path)
    with locked(
        path / LOCK, f"{path} is in use by another training: choose another --out, or stop that training"
    ):
        if text := _microbatch_note(former, recipe):
            note(text)
        # First: it makes the folder a run's, which a killed start leaves behind.
        write_json(recipe_path, to_json(recipe))
        run = RunFolder(path, recipe.train.keep_checkpoints)
        for folder in (run.checkpoints.folder, run.samples):
            make_folder(folder)
        yield run


@contextlib.contextmanager
def open_run_of_all(
    path: Path, recipe: Recipe, resume: bool, world: World, by_batch: bool, note: Callable[[str], object]
) -> Iterator[RunFolder]:
    """`open_run` in the main process, for all processes of a run; they must share the file system."""
    with contextlib.ExitStack() as stack:
        with world.together():
            if world.is_main:
                run = stack.enter_context(open_run(path, recipe, resume, by_batch, note))
            else:
                run = RunFolder(path, recipe.train.keep_checkpoints)
        yield run


def _check_free(path: Path, recipe_path: Path, resume: bool) -> None:
    occupied = is_occupied(path, but=is_leftover)
    if occupied and not recipe_path.exists():
        raise UserError(f"{path} is not empty and holds no run: choose another --out")
    if occupied and not resume:
        raise UserError(f"{path} already holds a run: resume it with --resume, or choose another --out")


def _stored_recipe(path: Path) -> dict[str, Any]:
    """The recipe of a run; fields that an older version did not have get their defaults."""
    stored = with_current_names(read_json(path))
    if not isinstance(stored, dict):
        raise UserError(f"{path} is damaged, not a recipe: choose another --out")
    try:
        return to_json(validate(Recipe, stored))
    except ValueError:  # no recipe of this version: it is compared as it stands
        return stored


def _check_same(path: Path, stored: dict[str, Any], wanted: dict[str, Any], by_batch: bool) -> None:
    """Only fields that do not affect the result may change, and the microbatch, if the objective allows it."""
    may_change = FREE if by_batch else (*FREE, MICROBATCH)
    stored, wanted = _with_microbatch(stored), _with_microbatch(wanted)
    key = first_difference(_without(stored, may_change), _without(wanted, may_change))
    if not key:
        return
    old, new = _text_at(stored, key), _text_at(wanted, key)
    key = key.replace(".options.", ".")  # as overrides name it
    why = ", on which the loss of this objective depends" if key == MICROBATCH else ""
    raise UserError(
        f"{path} was trained with another recipe ('{key}' differs: {old} there, {new} now{why}): choose another --out, "
        "or that recipe"
    )


def _with_microbatch(recipe: dict[str, Any]) -> dict[str, Any]:
    """A microbatch of null is the batch."""
    train = recipe.get("train")
    if not isinstance(train, dict) or train.get("microbatch") is not None:
        return recipe
    return {**recipe, "train": {**train, "microbatch": train.get("batch")}}


def _without(recipe: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    kept = copy.deepcopy(recipe)
    for key in keys:
        above, _, last = key.rpartition(".")
        node = kept.get(above) if above else kept
        if isinstance(node, dict):
            node.pop(last, None)
    return kept


def _text_at(recipe: dict[str, Any], key: str) -> str:
    """The value of a key, for messages; options that a recipe does not name have the default of their factory."""
    node: Any = recipe
    for part in key.split("."):
        if not isinstance(node, dict) or part not in node:
            return "its default"
        node = node[part]
    return json.dumps(node)


def _microbatch_note(stored: dict[str, Any], recipe: Recipe) -> str:
    """The message about a microbatch of another size, "" if it is the same."""
    train = stored.get("train")
    former = train.get("microbatch") if isinstance(train, dict) else None
    old, new = former or recipe.train.batch, recipe.train.microbatch or recipe.train.batch
    if old == new:
        return ""
    return (
        f"{MICROBATCH} is {new} from here on, not {old}: gradients are summed in another order, so the run is the same "
        "to rounding, no longer bit for bit"
    )
