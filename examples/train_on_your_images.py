"""Your own images: a teacher, then a student in one and two steps. The recipe is data that you change by key=value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import trigflow
from trigflow import recipes
from trigflow.models.pictures import save_grid
from trigflow.system import config
from trigflow.training.loop import train


def your_images(count: int) -> np.ndarray:
    """(N, C, H, W) uint8: blurry dots here, to be replaced by your images."""
    y, x = np.mgrid[:8, :8]
    centres = np.random.default_rng(0).uniform(2, 5, (count, 2, 1, 1))
    dots = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 3)
    return (255 * dots[:, None]).astype(np.uint8)


def main(folder: Path = Path("runs/own"), count: int = 5000, overrides: tuple[str, ...] = ()) -> torch.Tensor:
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", your_images(count))
    common = [f"data={folder / 'images.npy'}", "train.label_dropout=0", "train.total_nimg=200000", *overrides]

    recipe = config.apply_overrides(recipes.RECIPES["digits-teacher"](), common)
    teacher = train(recipe, folder / "teacher")
    recipe = config.apply_overrides(recipes.RECIPES["digits-scd"](), [*common, f"teacher={teacher}"])
    student = train(recipe, folder / "student")

    samples = trigflow.load(student).sample(64, steps=2)
    save_grid(samples, folder / "samples.png")
    return samples


if __name__ == "__main__":
    main()
