"""Several processes as one run: the processes that torchrun started, their communication, sharded tensors.

A single process is a World of size 1, where every function here is the identity and torch.distributed is not used.
"""

from __future__ import annotations

import atexit
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from trigflow.system import launch
from trigflow.system.devices import resolve_device
from trigflow.system.errors import LostProcess, OwnMistake, UserError, one_of

Strategy = Literal["fsdp", "hsdp", "ddp"]
STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)

# How long a process waits for the main process, which scores and writes for all. A process that ends is noticed at
# once, by its closed connection; a machine that loses its power is not.
PATIENCE = timedelta(hours=3)


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: number of this process; 0 is the main process, which writes files and prints.
        size: number of processes.
        device: the device of this process.
        mesh: the device mesh, "replicate" x "shard" or "shard" only; None for a single process.
        messages: the process group for small tensors on the CPU.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    mesh: Any = None
    messages: Any = None

    @property
    def is_single(self) -> bool:
        return self.size == 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; called by all processes."""
        return flag if self.is_single else bool(self._reduced(torch.tensor(int(flag)), dist.ReduceOp.MAX))

    def total(self, values: Tensor) -> Tensor:
        """The sum over the processes, on the device of the values."""
        return values if self.is_single else self._reduced(values, dist.ReduceOp.SUM).to(values.device)

    def greatest(self, values: Tensor) -> Tensor:
        """The largest over the processes, element by element, on the device of the values."""
        return values if self.is_single else self._reduced(values, dist.ReduceOp.MAX).to(values.device)

    def joined(self, part: Tensor) -> Tensor:
        """The parts of all processes, concatenated in the order of ranks, on the CPU; all must have the same shape."""
        if self.is_single:
            return part.cpu()
        own = part.detach().cpu().contiguous()
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self.messages)
        return torch.cat(parts)

    def share(self, items: Tensor) -> Tensor:
        """This process's share of items that all processes have; shares have equal length, by repeating the last item.

        `joined` concatenates results in the order of the items, followed by those of the repeated item.
        """
        if self.is_single:
            return items
        each = -(-len(items) // self.size)
        places = torch.arange(self.rank * each, (self.rank + 1) * each)
        return items[places.clamp(max=len(items) - 1)]

    def first_text(self, text: str) -> str:
        """The text of the main process, in all processes."""
        return text if self.is_single else self._text(text, 0)

    def first_names(self, names: list[str]) -> list[str]:
        """The names of the main process, in all processes: machines may list a shared folder differently."""
        found: list[str] = json.loads(self.first_text(json.dumps(names)))
        return found

    def _reduced(self, values: Tensor, operation: Any) -> Tensor:
        copy = values.detach().cpu().clone()
        dist.all_reduce(copy, operation, group=self.messages)
        return copy

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """If a process raises a UserError inside, all processes raise it; no communication is allowed inside.

        If several fail, it is the error of the one with the lowest rank.
        """
        own: UserError | None = None
        try:
            yield
        except UserError as error:
            if self.is_single:
                raise
            own = error
        if self.is_single:
            return
        failed = self.rank if own else self.size
        first = int(self._reduced(torch.tensor(failed), dist.ReduceOp.MIN))
        if first < self.size:
            text = self._text(str(own), first)
            raise own if own and first == self.rank else UserError(text)

    def by_first(self, work: Callable[..., object], *arguments: Any) -> None:
        """Runs work in the main process only; all wait for it, and raise its UserError if it fails."""
        with self.together():
            if self.is_main:
                work(*arguments)

    def _text(self, text: str, source: int) -> str:
        """The text of one process, in all."""
        data = torch.frombuffer(bytearray(f"{text}\n".encode()), dtype=torch.uint8)
        length = torch.tensor(len(data))
        dist.broadcast(length, source, group=self.messages)
        if self.rank != source:
            data = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(data, source, group=self.messages)
        return bytes(data.tolist()).decode()[:-1]


SINGLE_PROCESS = World()


# Beginning and end


@contextlib.contextmanager
def open_world(device: str | torch.device = "auto", strategy: Strategy | None = None) -> Iterator[World]:
    """The processes that torchrun has started; a World of size 1 without torchrun, or with just one process.

    Args:
        device: the device for computing; with several CUDA devices each process of a machine takes its own.
        strategy: layout of the networks: "fsdp" (the default) shards them over all processes, "hsdp" over those of
            each machine, "ddp" replicates them in each process.

    Raises:
        UserError: a strategy is given without torchrun, or there is no such device.
        LostProcess: another process ended while this one waited for it.
    """
    if strategy is not None:
        one_of("strategy", strategy, STRATEGIES)
        if not launch.is_launched():
            raise UserError(f"--parallel {strategy}: there is only one process; start several with torchrun")
    size = launch.place("WORLD_SIZE", 1)
    if size == 1:
        yield World(device=resolve_device(device))
        return
    own = _own_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)
    if not dist.is_initialized():  # once: a second time, a process would look for the others where they were
        dist.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    with _told_of_a_lost_process():
        messages = dist.new_group(backend="gloo", timeout=PATIENCE)
        world = World(dist.get_rank(), size, own, None, messages)
        yield replace(world, mesh=_mesh(world, strategy or "fsdp"))


def _own_device(device: str | torch.device) -> torch.device:
    """The device of this process; MPS is one device, which several processes cannot share."""
    place = resolve_device(device)
    if place.type == "mps":
        if device != "auto":
            raise UserError("several processes compute on CUDA or the CPU, not on MPS: give --device cpu")
        return torch.device("cpu")
    if place.type == "cuda":
        try:
            return resolve_device(f"cuda:{launch.place('LOCAL_RANK', 0)}")
        except UserError as error:
            raise OwnMistake(f"process {launch.place('RANK', 0)}: {error}") from None
    return place


def _mesh(world: World, strategy: Strategy) -> Any:
    """In DDP each shard group is one process; in FSDP there are no replicas, like HSDP on one machine."""
    from torch.distributed.device_mesh import init_device_mesh

    size, device = world.size, world.device
    shards = {"fsdp": size, "ddp": 1, "hsdp": launch.place("LOCAL_WORLD_SIZE", 1)}[strategy]
    if world.any(size % shards > 0) or world.greatest(torch.tensor(shards)) > shards:
        raise UserError("--parallel hsdp: start the same number of processes on each machine")
    if shards == size:
        return init_device_mesh(device.type, (size,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (size // shards, shards), mesh_dim_names=("replicate", "shard"))


# The error messages of gloo and NCCL after another process has ended.
_LOST = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("Socket Timeout", "Timed out waiting", "recvValue failed", "sendBytes failed"),
    *("remote process exited", "communicator was aborted"),
)


def is_lost_connection(error: BaseException) -> bool:
    """Whether the error means that another process has ended; other errors of communication are not changed."""
    return isinstance(error, dist.DistNetworkError) or any(words in str(error) for words in _LOST)


def is_resource_error(error: BaseException) -> bool:
    """Whether the error is a lost process or too little memory, rather than a mistake in the code that was called."""
    lack = isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)
    return lack or is_lost_connection(error)


@contextlib.contextmanager
def _told_of_a_lost_process() -> Iterator[None]:
    """Turns errors of a lost connection to another process into a LostProcess."""
    try:
        yield
    except BaseException as error:
        atexit.unregister(dist.destroy_process_group)  # it would wait for those that have not ended
        if not isinstance(error, RuntimeError | dist.DistError) or not is_lost_connection(error):
            raise
        raise LostProcess(
            f"another process of the run has ended, so process {launch.place('RANK', 0)} exits, too; saved "
            "checkpoints are not lost: add --resume to the same command to continue a training"
        ) from error


# Tensors in shards


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a distributed tensor, of which each process holds a shard (or, if replicated, the whole)."""
    return hasattr(tensor, "device_mesh")


@torch.no_grad()
def own_part(tensor: Tensor) -> Tensor:
    """This process's shard, in the same memory; a plain tensor itself."""
    part: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return part


@torch.no_grad()
def all_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; for a sharded tensor called by all processes, with the same result."""
    finite = tensor.isfinite().all()
    return bool(finite.full_tensor() if is_sharded(finite) else finite)  # type: ignore[attr-defined]


@torch.no_grad()
def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor in the layout of `like`, sharded or plain.

    Args:
        tensor: this process's shard; or the whole tensor, the same in every process; or already in this layout.
        like: a tensor of the wanted layout.
    """
    if not is_sharded(like):
        return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    if is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    tensor = tensor.to(like.device)
    if tensor.shape == like.shape and own_part(like).shape != like.shape:
        return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
    return DTensor.from_local(
        tensor, mesh, placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """The whole tensors on the CPU, in the main process; empty in the others. Called by all processes."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        full: Tensor = tensor.detach()
        if is_sharded(full):
            full = full.full_tensor()  # type: ignore[attr-defined]
        if world.is_main:
            found[name] = full if world.is_single else full.cpu()
    return found
