"""Which format a path is of: by its ending, or by what a folder holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from trigflow.data.formats.candidates import LeftOut, is_picture, pictures_below
from trigflow.data.formats.hub import HUB
from trigflow.data.formats.picture import SUFFIXES
from trigflow.system.errors import UserError
from trigflow.system.files import clear_os_errors

_FILES = {
    ".npy": "arrays",
    ".npz": "arrays",
    ".zip": "edm_zip",
    ".parquet": "huggingface",
    ".arrow": "huggingface",
    ".tar": "webdataset",
}
_FOLDER_ARGUMENT = ("mnist", "cifar10")  # these call it `folder`, the others `path`

FOLDERS = (
    "IDX files (train-images-idx3-ubyte, ...), CIFAR-10's batches (data_batch_1, ...), .parquet files, "
    "what save_to_disk writes, .tar shards, latents.json and what belongs to it, pictures "
    f"({', '.join(SUFFIXES)}), or one folder of pictures for each class"
)


def recognised(name: str) -> tuple[str, str] | None:
    """The format of a path and the name of its argument for the path; None if it is no path.

    Raises:
        UserError: a path of which there is nothing, or none of the formats.
    """
    path = Path(name)
    if name.startswith(HUB):
        return "huggingface", "path"
    if path.is_dir():
        kind = _folder(path)
        return kind, "folder" if kind in _FOLDER_ARGUMENT else "path"
    if path.suffix.lower() in _FILES:
        return _FILES[path.suffix.lower()], "path"
    if path.exists():
        raise UserError(f"{name} is of no format that is known: a file ends in {', '.join(_FILES)}")
    if "/" in name or os.sep in name:
        raise UserError(f"there is no file or folder {name}")
    return None


def _folder(folder: Path) -> str:
    with clear_os_errors("read", folder):
        names = sorted(os.listdir(folder))
        inner = [entry for name in names if not name.startswith(".") and (entry := folder / name).is_dir()]
        for kind, ours in _CHECKS.items():
            if any(ours(name) for name in names):
                return kind
        if any(is_picture(name) for name in names):
            return "image_folder"
        if any(name.endswith(".parquet") for entry in inner for name in _deep(entry)):
            return "huggingface"
        if next(pictures_below(str(folder), LeftOut()), ""):
            return "image_folder"
    raise UserError(f"{folder} holds no data that is known; a folder may hold {FOLDERS}")


_CHECKS: dict[str, Callable[[str], bool]] = {
    "latent_folder": lambda name: name == "latents.json",
    "mnist": lambda name: "-ubyte" in name and "idx" in name,
    "cifar10": lambda name: name in ("data_batch_1", "test_batch", "batches.meta"),
    "huggingface": lambda name: (
        name.endswith((".parquet", ".arrow")) or name in ("dataset_dict.json", "state.json")
    ),
    "webdataset": lambda name: name.endswith(".tar"),
}


def _deep(folder: Path) -> list[str]:
    """The names of the files below a folder."""
    return [name for _, _, names in os.walk(folder) for name in names]
