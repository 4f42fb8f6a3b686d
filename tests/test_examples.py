"""The examples run, with tiny settings, and are short enough to be read."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(name: str, **settings: Any) -> Any:
    return runpy.run_path(str(Path(__file__).parent.parent / "examples" / f"{name}.py"))["main"](**settings)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert 20 <= len(text.splitlines()) <= 60


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    assert all(f'run("{path.stem}"' in here for path in EXAMPLES)


def test_sample_digits(tmp_path: Path) -> None:
    run("sample_digits", num=2, out=tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 0


def test_own_training_loop_learns() -> None:
    """Short as it is here, it brings the error from about 1.4 (no training) to well below 1."""
    assert run("own_training_loop", steps=200, width=32) < 0.8


def test_derivative_of_your_network() -> None:
    errors = run("derivative_of_your_network", batch=3)
    assert errors["func"] < 1e-12
    assert errors["finite_difference"] < 1e-6


def test_flow_matching_teacher_is_converted_exactly() -> None:
    """Twice the steps, about a quarter of the error: what is left is the solver's, not the conversion's."""
    coarse = run("flow_matching_teacher", num=200, steps=64)
    fine = run("flow_matching_teacher", num=200, steps=128)
    finest = run("flow_matching_teacher", num=200, steps=512)
    assert abs(fine - finest) < 0.35 * abs(coarse - finest)


def test_train_on_your_images(tmp_path: Path) -> None:
    overrides = (*TINY, "train.batch=32")
    samples = run("train_on_your_images", folder=tmp_path, count=64, overrides=overrides)
    assert samples.shape == (64, 1, 8, 8)
    assert samples.dtype == torch.uint8
    assert (tmp_path / "samples.png").exists()
