"""Conversion of a run's state to the tensors and JSON data of a checkpoint, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from trigflow.core.precond import TrigFlowPrecond
from trigflow.data.labels import Labels, check_order, class_names
from trigflow.system.devices import seed_generators
from trigflow.system.distributed import World
from trigflow.system.errors import UserError
from trigflow.system.tensors import below, load_tensors, prefixed
from trigflow.training.progress import Averages
from trigflow.training.trained import Trained


@dataclass(frozen=True)
class RunState:
    """The state of a run; data order, t, z and dropout are not part of it, being functions of (seed, nimg).

    Args:
        trained: networks by name, with their optimisers and averages.
        target: the target network, with which the objective computes the tangent, or None.
        averages: means of the logged values.
        device: the device for training.
        world: the processes of the run.
        batch: images in a step.
        labels: of the data; the order of its classes is part of the run.
    """

    trained: Mapping[str, Trained]
    target: TrigFlowPrecond | None
    averages: Averages
    device: torch.device
    world: World
    batch: int
    labels: Labels = field(default_factory=Labels)

    def pack(self, nimg: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors and JSON data of the state after nimg images."""
        tensors = {"rng/cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            tensors["rng/cuda"] = torch.cuda.get_rng_state(self.device)
        for trained in self.trained.values():
            tensors |= trained.tensors()
        if self.target is not None:
            tensors |= prefixed("target/", self.target.state_dict())
        sums, counts = self.averages.state()
        scales = {name: trained.loss_scale.state() for name, trained in self.trained.items()}
        state = {"nimg": nimg, "log": counts, "loss_scale": scales}
        if self.labels.classes:
            state["classes"] = list(self.labels.classes)
        return tensors | prefixed("log/", sums), state

    def take_up(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> int:
        """Restores a packed state; returns nimg.

        Raises:
            UserError: it is the state of another run.
        """
        self._check(tensors, state)
        for name, trained in self.trained.items():
            scale = state.get("loss_scale", {}).get(name, {})
            trained.take_up(tensors, scale, state["nimg"] // self.batch)
        if self.target is not None:
            load_tensors(self.target, below(tensors, "target/"), "it")
        sums = {name: value.to(self.device) for name, value in below(tensors, "log/").items()}
        self.averages.load(sums, state["log"])
        with self.world.together():
            self._set_generators(tensors)
        return int(state["nimg"])

    def _set_generators(self, tensors: dict[str, Tensor]) -> None:
        """Restores torch's generators, for user-defined networks that draw from them.

        A checkpoint has those of the main process. The other processes seed new ones from them.
        """
        if not self.world.is_main:
            digest = hashlib.sha256(tensors["rng/cpu"].numpy().tobytes()).digest()
            seed_generators(int.from_bytes(digest[:7]) + self.world.rank, self.device)
            return
        try:
            torch.set_rng_state(tensors["rng/cpu"])
            if "rng/cuda" in tensors and self.device.type == "cuda":
                torch.cuda.set_rng_state(tensors["rng/cuda"], self.device)
        except (RuntimeError, TypeError):
            raise UserError("its state of the random generator is damaged") from None

    def _check(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raises a UserError for what the networks, optimisers and averages do not check themselves."""
        nimg, counts, sums = state.get("nimg"), state.get("log"), below(tensors, "log/")
        if type(nimg) is not int or nimg < 0 or nimg % self.batch:
            raise UserError(f"its nimg is {nimg!r}, not a number of whole batches")
        if not isinstance(counts, dict) or counts.keys() != sums.keys():
            raise UserError("its sums of logged values are incomplete")
        if not all(type(n) is int and n > 0 for n in counts.values()) or any(x.dim() for x in sums.values()):
            raise UserError("its sums of logged values are incomplete")
        if not isinstance(state.get("loss_scale", {}), dict):
            raise UserError("its loss scales are incomplete")
        check_order("it", class_names(state.get("classes")), self.labels.classes, self.labels.origin)
        if "rng/cpu" not in tensors:
            raise UserError("it has no tensor 'rng/cpu'")
        known = ["rng/", "log/"] + (["target/"] if self.target is not None else [])
        for trained in self.trained.values():
            known += trained.prefixes()
        if foreign := [name for name in tensors if not name.startswith(tuple(known))]:
            raise UserError(f"its tensor '{foreign[0]}' does not belong to this run")
