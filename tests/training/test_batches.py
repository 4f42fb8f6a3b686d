"""The batches of a run are functions of the numbers of their images, whether or not a thread reads them ahead."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from torch import Tensor

from trigflow import recipes
from trigflow.data import Dataset
from trigflow.data.codecs import ImageCodec
from trigflow.data.dataset import Stored
from trigflow.recipes.schema import Recipe, TrainConfig
from trigflow.system.distributed import World
from trigflow.system.errors import UserError
from trigflow.training import assembly
from trigflow.training.batches import Batches
from trigflow.training.loop import train

COUNT = 30
CONFIG = TrainConfig(batch=8, microbatch=2, total_nimg=48, label_dropout=0.3, seed=4)


def images(mapped: bool) -> Dataset:
    pixels = torch.arange(COUNT * 64, dtype=torch.float32).remainder(251).byte().reshape(COUNT, 1, 8, 8)
    spread = torch.arange(COUNT * 64).reshape(COUNT, 1, 8, 8).half() / 100
    return Dataset(
        *("images", pixels, torch.arange(COUNT) % 10, 10, ImageCodec((100.0,), (50.0,))),
        mapped=mapped,
        spread=spread,
        flip=True,
    )


def spans(rank: int, size: int) -> list[tuple[int, int]]:
    """Of one process, in the order of the loop."""
    share, micro = CONFIG.batch // size, CONFIG.microbatch or 0
    starts = range(rank * share, CONFIG.total_nimg, CONFIG.batch)
    return [(first, micro) for start in starts for first in range(start, start + share, micro)]


class Counted(Batches):
    """Keeps what it reads, and where."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.read: list[tuple[int, int]] = []
        self.threads: set[threading.Thread] = set()

    def _read(self, span: tuple[int, int]) -> Stored:
        self.read.append(span)
        self.threads.add(threading.current_thread())
        return super()._read(span)


@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 2), (1, 2), (3, 4)])
def test_what_is_read_ahead_is_what_is_read_at_once(rank: int, size: int) -> None:
    """Bit for bit; each batch is read once, in order, and none after the last."""
    world = World(rank, size)
    ahead, at_once = (Counted(images(mapped), CONFIG, world) for mapped in (True, False))
    for span in spans(rank, size):
        (one, here), (other, there) = ahead.of(*span), at_once.of(*span)
        assert torch.equal(one.x_0, other.x_0) and torch.equal(here.index, there.index)
        assert torch.equal(one.cond["labels"], other.cond["labels"])
    ahead.close()
    assert ahead.read == at_once.read == spans(rank, size)
    assert at_once.threads == {threading.current_thread()} and len(ahead.threads) == 1
    assert not any(thread.is_alive() for thread in ahead.threads)


def test_a_batch_that_was_not_expected_is_the_right_one() -> None:
    ahead, at_once = (Batches(images(mapped), CONFIG) for mapped in (True, False))
    for span in ((0, 2), (20, 5), (20, 5), (3, 1), (46, 2), (0, 2)):
        assert torch.equal(ahead.of(*span)[0].x_0, at_once.of(*span)[0].x_0)
    ahead.close()


# Runs


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Of a training on images that are mapped from a file."""
    monkeypatch.setattr("trigflow.data.cache.MAPPED_BYTES", 100)
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    np.save(tmp_path / "images.npy", images(mapped=False).data.numpy())
    own = [f"data={tmp_path / 'images.npy'}", "train.label_dropout=0", "train.total_nimg=160"]
    return recipes.get("digits-teacher", [*TINY, *own])


def run(recipe: Recipe, folder: Path, resume: bool = False) -> bytes:
    train(recipe, folder, resume=resume, device="cpu", progress=False)
    return (folder / "model.safetensors").read_bytes()


def readers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("batches")]


def meddling(monkeypatch: pytest.MonkeyPatch, meddle: Callable[[int], None]) -> None:
    """Calls a function with the number of the call before rows are taken, in the thread that reads."""
    taken, calls = Dataset.taken, []

    def change(dataset: Dataset, chosen: Tensor, device: torch.device) -> Stored:
        assert readers()
        meddle(len(calls))
        calls.append(1)
        return taken(dataset, chosen, device)

    monkeypatch.setattr(Dataset, "taken", change)


def test_an_error_of_reading_is_that_of_the_run(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(number: int) -> None:
        if number == 3:
            raise UserError("images.npy cannot be read: the disk is gone")

    meddling(monkeypatch, fail)
    with pytest.raises(UserError, match=r"^images\.npy cannot be read: the disk is gone$"):
        run(recipe, tmp_path / "run")
    assert not readers()


@pytest.mark.parametrize("times", [1, 2])
def test_a_stopped_run_goes_on_with_the_next_batch(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """One Ctrl-C, after the step; and a second, at once."""
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        steps: list[int] = []

        def stop(batches: Batches, first: int, size: int) -> object:
            found = of(batches, first, size)
            steps.append(first)
            for _ in range(times if len(steps) == 3 else 0):
                signal.raise_signal(signal.SIGINT)
            return found

        of = Batches.of
        patch.setattr(Batches, "of", stop)
        with pytest.raises(KeyboardInterrupt, match="--resume"):
            run(recipe, tmp_path / "run")
    assert not readers()
    assert run(recipe, tmp_path / "run", resume=True) == whole
    assert not readers()


def test_microbatches_of_mapped_data_are_those_in_memory(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(recipe, train=replace(recipe.train, microbatch=recipe.train.batch // 2))
    mapped = run(recipe, tmp_path / "mapped")
    load = assembly.load_data
    monkeypatch.setattr(assembly, "load_data", lambda *arguments: replace(load(*arguments), mapped=False))
    assert run(recipe, tmp_path / "memory") == mapped
