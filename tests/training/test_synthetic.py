"""Training on samples of the teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY

from trigflow import recipes
from trigflow.data import load_data
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.training.loop import train
from trigflow.training.synthetic import synthetic_data


def test_they_are_the_teachers_samples(teacher_folder: Path, tmp_path: Path) -> None:
    teacher, digits = load(teacher_folder, "cpu"), load_data("digits")
    cache = tmp_path / "synthetic.safetensors"
    made = synthetic_data(teacher, digits, 600, 3, 1.0, cache, progress=False)
    assert made.data.shape == (600, 1, 8, 8) and made.data.dtype == torch.uint8
    assert made.labels is not None and digits.labels is not None
    again = teacher.sample(600, labels=made.labels, seed=2**32 - 4, batch=150)
    assert (made.data.int() - again.int()).abs().max() <= 1  # to rounding
    assert (made.codec, made.num_classes, made.name) == (digits.codec, 10, "digits")
    shares = made.labels.bincount(minlength=10) / 600
    assert (shares - digits.labels.bincount() / len(digits.labels)).abs().max() < 0.05


def test_they_are_made_once(teacher_folder: Path, tmp_path: Path) -> None:
    teacher, digits = load(teacher_folder, "cpu"), load_data("digits")
    cache = tmp_path / "synthetic.safetensors"
    first = synthetic_data(teacher, digits, 20, 0, 1.0, cache, progress=False)
    written = cache.stat().st_mtime_ns
    second = synthetic_data(teacher, digits, 20, 0, 1.0, cache, progress=False)
    assert cache.stat().st_mtime_ns == written and torch.equal(first.data, second.data)
    cache.write_bytes(cache.read_bytes()[:-7])  # damaged: made again
    third = synthetic_data(teacher, digits, 20, 0, 1.0, cache, progress=False)
    assert torch.equal(first.data, third.data) and cache.stat().st_mtime_ns != written


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load(folder, "cpu").precond.network.state_dict())


def test_a_run_trains_on_them_and_resumes(teacher_folder: Path, tmp_path: Path) -> None:
    small = [*TINY, f"teacher={teacher_folder}", "train.synthetic=40", "optimizer.schedule=constant"]

    def trained(name: str, *overrides: str) -> dict[str, torch.Tensor]:
        recipe = recipes.get("digits-scd", [*small, *overrides])
        return weights(train(recipe, tmp_path / name, resume=True, device="cpu", progress=False))

    whole = trained("whole", "train.total_nimg=64")
    trained("parts", "train.total_nimg=32")
    resumed = trained("parts", "train.total_nimg=64")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    real = trained("real", "train.total_nimg=64", "train.synthetic=0")
    assert any(not torch.equal(whole[name], real[name]) for name in whole)


def test_there_must_be_a_teacher_to_sample_from(tmp_path: Path) -> None:
    recipe = recipes.get("mixture2d-scd", ["train.synthetic=10"])
    with pytest.raises(UserError, match=r"train.synthetic = 10.*no teacher model"):
        train(recipe, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()
