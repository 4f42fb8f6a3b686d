"""Settings and fixtures that every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from trigflow import recipes
from trigflow.training.loop import train

matplotlib.use("Agg")
# Triton reads it at its first import, which torch.compile does: without a GPU its interpreter runs the kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
torch.set_num_threads(1)  # small tensors, several test processes: more threads would only wait for each other


def available_devices() -> list[str]:
    """The devices of this machine, the CPU first."""
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices.append("cuda")
    if torch.backends.mps.is_available():
        devices.append("mps")
    return devices


@pytest.fixture(params=available_devices())
def device(request: pytest.FixtureRequest) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests leave nothing in the user's cache, and take nothing from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRIGFLOW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same generator and leaves the default type and gradients as it found them."""
    torch.manual_seed(0)
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.is_grad_enabled()


# A run of two steps with the smallest network: what it makes is noise, but a model in every other respect.
TINY = (
    *(
        "network=mlp",
        "network.width=16",
        "network.depth=1",
        "train.batch=16",
        "train.total_nimg=32",
        "train.log_nimg=16",
        "train.tensorboard=false",
        "train.synthetic=0",
    ),
    "sampling.grid_nimg=0",
)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny teacher of digits (not to be written to)."""
    recipe = recipes.get("digits-teacher", [*TINY, "sampling.steps=3", "train.label_dropout=0.1"])
    return train(recipe, tmp_path_factory.mktemp("models") / "teacher", device="cpu", progress=False)


@pytest.fixture(scope="session")
def small_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 64 images of 16x16 pixels with ten classes (not to be written to)."""
    path = tmp_path_factory.mktemp("data") / "images.npz"
    data = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16), dtype=np.uint8)
    np.savez(path, images=data, labels=np.arange(64) % 10)
    return path


@pytest.fixture(scope="session")
def student_folder(teacher_folder: Path) -> Path:
    """Its student (not to be written to)."""
    recipe = recipes.get("digits-scd", [*TINY, f"teacher={teacher_folder}"])
    return train(recipe, teacher_folder.parent / "student", device="cpu", progress=False)
