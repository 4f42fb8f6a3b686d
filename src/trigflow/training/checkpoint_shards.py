"""The checkpoint of a run of several processes: a folder into which each process writes its shards.

The shards are PyTorch's distributed checkpoint in safetensors, so any number of processes can read them, and nothing is
pickled. The folder also has state.json: the rest of the state, and the digests of all files.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from trigflow.system.distributed import World, is_sharded
from trigflow.system.errors import UserError
from trigflow.system.files import (
    DamagedFile,
    clear_os_errors,
    make_folder,
    read_json,
    sha256_of,
    sync_folder,
    write_json,
)

STATE = "state.json"


def write_shards(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any], world: World) -> None:
    """Writes tensors and JSON data into a folder, atomically; called by all processes.

    Args:
        path: path of the folder, on a file system that all processes share.
        tensors: tensors by name; the main process writes those that are not sharded.
        state: the JSON data.
        world: the processes.

    Raises:
        UserError: no space, no permission.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    world.by_first(_begin, temporary)
    own = {name: tensor for name, tensor in tensors.items() if world.is_main or is_sharded(tensor)}
    writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
    try:
        save(own, storage_writer=writer, process_group=world.messages)
    except CheckpointException as error:  # raised in all processes, whichever has failed
        raise _as_user_error("write", path, error) from error
    names = world.first_names(sorted(file.name for file in temporary.glob("*.safetensors")))
    digests = dict(zip(names, _digests([temporary / name for name in names], world), strict=True))
    world.by_first(_finish, temporary, path, {"state": state, "files": digests})


def _begin(temporary: Path) -> None:
    remove(temporary)
    make_folder(temporary)


def _finish(temporary: Path, path: Path, content: dict[str, Any]) -> None:
    """Writes state.json with the digests and renames the folder, which makes it a complete checkpoint."""
    write_json(temporary / STATE, {**content, "sha256": _digest_of(content)})
    with clear_os_errors("write", path):
        remove(path)
        os.rename(temporary, path)
        sync_folder(path.parent)


def read_shards(path: Path, world: World) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what write_shards wrote; each process gets its shards, laid out as the weights of a sharded network.

    Raises:
        DamagedFile: a file is missing or was changed; raised in all processes.
        UserError: it cannot be read, or there are other safetensors files in the folder.
    """
    content: dict[str, Any] = {}
    with world.together():
        content = _read_content(path)
    files = [path / name for name in sorted(content.get("files", {}))]
    there = bool(files) and all(file.is_file() for file in files)
    if world.any(not there):
        raise DamagedFile("its state.json is, or one of its files is missing")
    # The reader takes whatever safetensors lie in the folder, and of two with one tensor the last.
    strangers = sorted(file.name for file in path.glob("*.safetensors") if file not in files)
    if world.any(bool(strangers)):
        which = strangers[0] if strangers else "which another process sees"
        raise UserError(f"{path} holds safetensors that do not belong to it ({which}): move them elsewhere")
    if world.any(_digests(files, world) != [content["files"][file.name] for file in files]):
        raise DamagedFile("the digest of one of its files is wrong")
    reader = HuggingFaceStorageReader(str(path))
    described: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {
        name: _blank(tuple(one.size), one.properties.dtype, world) for name, one in sorted(described.items())
    }
    try:
        with warnings.catch_warnings():
            # torch warns about a single process.
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            load(tensors, storage_reader=reader, process_group=world.messages, no_dist=world.is_single)
    except CheckpointException as error:
        raise _as_user_error("read", path, error) from error
    return tensors, content["state"]


def remove(path: Path) -> None:
    """Removes the folder or file, if it exists."""
    if path.is_dir():
        with clear_os_errors("remove", path):
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _read_content(path: Path) -> dict[str, Any]:
    """state.json; empty where it is damaged."""
    if not (path / STATE).is_file():
        return {}
    try:
        stored = read_json(path / STATE)
        digest = stored.pop("sha256")
    except (UserError, AttributeError, LookupError, TypeError):
        return {}
    whole = digest == _digest_of(stored) and isinstance(stored.get("state"), dict)
    return stored if whole else {}


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digests(files: list[Path], world: World) -> list[str]:
    """SHA-256 of each file; each process reads some of them."""
    digests = torch.zeros(len(files), 32, dtype=torch.int64)
    with world.together():
        for number in range(world.rank, len(files), world.size):
            digests[number] = torch.tensor(list(bytes.fromhex(sha256_of(files[number]))))
    return [bytes(row).hex() for row in world.total(digests).tolist()]


def _blank(shape: tuple[int, ...], dtype: torch.dtype, world: World) -> Tensor:
    """A tensor to read into, laid out as by fully_shard (rows over the shards, the same in each replica)."""
    if world.is_single or not shape or not dtype.is_floating_point:
        return torch.empty(shape, dtype=dtype)
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor import empty as empty_shards

    layout = [Shard(0) if dim == "shard" else Replicate() for dim in world.mesh.mesh_dim_names]
    made: Tensor = empty_shards(*shape, dtype=dtype, device_mesh=world.mesh, placements=layout)
    return made


def _as_user_error(action: str, path: Path, error: CheckpointException) -> UserError:
    reason = next(iter(error.failures.values()))[0]
    return UserError(f"cannot {action} {path}: {getattr(reason, 'strerror', None) or reason}")
