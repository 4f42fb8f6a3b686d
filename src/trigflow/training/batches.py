"""The batches of a run; data that lies in a file is read while the loop computes with the batch before."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from trigflow.core.randomness import SampleRandom
from trigflow.data.dataset import Dataset, Stored, flipped, rows
from trigflow.objectives.batch import Batch
from trigflow.recipes.schema import TrainConfig
from trigflow.system.distributed import SINGLE_PROCESS, World

Span = tuple[int, int]  # number of the first image, number of images


class Batches:
    """The batches of this process, on its device.

    Each is a function of the numbers of its images: none depends on those asked for before, or on what is read ahead.
    Rows are chosen on the CPU. Data on the device is selected there; mapped data is read by a thread, one batch ahead,
    and for a GPU copied on a stream of its own. `close` ends the thread.

    Args:
        dataset: the training data, on the device or mapped.
        config: of the run.
        world: the processes of the run, of which this is one.
    """

    def __init__(self, dataset: Dataset, config: TrainConfig, world: World = SINGLE_PROCESS) -> None:
        self.dataset, self.config, self.world = dataset, config, world
        self._ahead: tuple[Span, Future[Stored]] | None = None
        reads = dataset.mapped and world.device.type in ("cpu", "cuda")
        self._thread = ThreadPoolExecutor(1, "batches") if reads else None
        copies = reads and world.device.type == "cuda"
        self._stream = torch.cuda.Stream(world.device) if copies else None  # type: ignore[no-untyped-call]

    def of(self, first: int, size: int) -> tuple[Batch, SampleRandom]:
        """Images first .. first + size - 1 of the run, and their random numbers, functions of (seed, number).

        Raises:
            UserError: the data cannot be read, also where its thread found that out.
        """
        config, dataset = self.config, self.dataset
        stored = self._stored((first, size))
        random = SampleRandom(config.seed, torch.arange(first, first + size, device=self.world.device))
        x_0 = dataset.encode(stored, random)
        x_0 = flipped(x_0, random) if dataset.flip else x_0
        labels = stored.labels
        if labels is None:
            return Batch(x_0, {}, config.batch), random
        if config.label_dropout:
            dropped = random.uniform("label dropout") < config.label_dropout
            labels = labels.masked_fill(dropped, dataset.num_classes)
        return Batch(x_0, {"labels": labels}, config.batch), random

    def close(self) -> None:
        """Ends the thread; what it has read ahead is dropped."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._ahead = None

    def _stored(self, span: Span) -> Stored:
        """The images of a span; the thread then starts to read the next one."""
        if self._thread is None:
            return self._read(span)
        expected, ahead = self._ahead or (None, None)
        self._ahead = None
        if ahead is None or expected != span:
            ahead = self._thread.submit(self._read, span)
        stored = ahead.result()
        following = self._following(*span)
        if following[0] < self.config.total_nimg:
            self._ahead = following, self._thread.submit(self._read, following)
        if self._stream is not None:
            stored.record_stream(torch.cuda.current_stream(self.world.device))
        return stored

    def _following(self, first: int, size: int) -> Span:
        """The next of this process, whose share of each step is a part of the step's images."""
        batch = self.config.batch
        share = batch // self.world.size
        end = first + size
        of_share = (end - self.world.rank * share) % batch
        return (end if of_share % share else end + batch - share), size

    def _read(self, span: Span) -> Stored:
        chosen = rows(self.config.seed, *span, len(self.dataset.data))
        if self._stream is None:
            return self.dataset.taken(chosen, self.world.device)
        with torch.cuda.stream(self._stream):  # sets the device of this thread, too
            stored = self.dataset.taken(chosen, self.world.device)
        self._stream.synchronize()  # in the thread: what it gives is there
        return stored
