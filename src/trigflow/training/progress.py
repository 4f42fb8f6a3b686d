"""Reports of a run during training: progress bar, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.files import clear_os_errors

# The logged values that the progress bar shows.
SHOWN = ("loss", "tangent_norm", "flow_map_median")


class Averages:
    """Means of logged values since the last line; they stay on the device until then, so nothing synchronises.

    Args:
        world: the processes to average over; all must log values of the same names.
    """

    def __init__(self, world: World = SINGLE_PROCESS) -> None:
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Adds detached values, one for each sample (or scalars)."""
        for name, value in values.items():
            total = value.sum()
            self._sums[name] = self._sums[name] + total if name in self._sums else total
            self._counts[name] = self._counts.get(name, 0) + value.numel()

    def take(self) -> dict[str, float]:
        """The means, which are then reset."""
        sums, counts = self.state()
        self._sums, self._counts = {}, {}
        return {name: float(total) / counts[name] for name, total in sums.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """The state for a checkpoint: sums and counts over all processes."""
        if self._world.is_single or not self._sums:
            return dict(self._sums), dict(self._counts)
        names = list(self._sums)
        sums = self._world.total(torch.stack([self._sums[name].double() for name in names]))
        counts = self._world.total(torch.tensor([self._counts[name] for name in names])).tolist()
        return dict(zip(names, sums, strict=True)), dict(zip(names, counts, strict=True))

    def load(self, sums: Mapping[str, Tensor], counts: Mapping[str, int]) -> None:
        """Restores a state, in the main process."""
        first = self._world.is_main
        self._sums = {name: value if first else torch.zeros_like(value) for name, value in sums.items()}
        self._counts = {name: count if first else 0 for name, count in counts.items()}


class Reporter:
    """Progress bar on stderr, a line of metrics.jsonl and TensorBoard scalars at each interval.

    Args:
        metrics: path of metrics.jsonl, appended to.
        events: folder of TensorBoard events, or None.
        nimg, total_nimg: the current and the final number of images.
        progress: show the progress bar.
    """

    def __init__(
        self, metrics: Path, events: Path | None, nimg: int, total_nimg: int, progress: bool
    ) -> None:
        self._metrics = metrics
        self._writer = _tensorboard(events, nimg) if events else None
        # If stderr is no terminal (a file, a pipe), a line now and then is enough.
        interval = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total_nimg,
            initial=nimg,
            unit="img",
            unit_scale=True,
            disable=not progress,
            mininterval=interval,
            maxinterval=interval,
            dynamic_ncols=True,
        )
        self._clock, self._nimg = time.perf_counter(), nimg

    def advance(self, images: int) -> None:
        """Advances the progress bar after a step."""
        self._bar.update(images)

    def write(self, nimg: int, means: Mapping[str, float]) -> None:
        """Writes one line: {"nimg": ..., the means, "images_per_second": ...}."""
        now = time.perf_counter()
        rate = (nimg - self._nimg) / max(now - self._clock, 1e-9)
        self._clock, self._nimg = now, nimg
        line = {"nimg": nimg, **means, "images_per_second": rate}
        with clear_os_errors("write", self._metrics), self._metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")
        shown = {name: f"{means[name]:.4g}" for name in SHOWN if name in means}
        self._bar.set_postfix(shown, refresh=False)
        if self._writer:
            for name, value in line.items():
                self._writer.add_scalar(name, value, nimg)

    def close(self) -> None:
        self._bar.close()
        if self._writer:
            self._writer.close()


class Silent:
    """A Reporter that does nothing, for all processes but the main process."""

    def advance(self, images: int) -> None:
        """No bar."""

    def write(self, nimg: int, means: Mapping[str, float]) -> None:
        """No line."""

    def close(self) -> None:
        """Does nothing."""


def _tensorboard(folder: Path, nimg: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter  # takes a second to import

    with clear_os_errors("write", folder):
        return SummaryWriter(str(folder), purge_step=nimg + 1)


def counted(parts: Iterable[Tensor], total: int, what: str, progress: bool) -> Iterator[Tensor]:
    """The parts, with a progress bar that counts their rows if all of them take longer than a second."""
    with tqdm(desc=what, total=total, unit="img", delay=1, disable=not progress) as bar:
        for part in parts:
            yield part
            bar.update(len(part))


def gradient_norm(gradients: list[Tensor]) -> Tensor:
    """The norm of all gradients together; not finite if one of them is not."""
    norms: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norms


def say(text: str) -> None:
    """Prints a message to stderr."""
    print(text, file=sys.stderr)
