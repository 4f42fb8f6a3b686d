"""A recipe and a data set of your own: functions in a module of yours, named "package.module:function".

Command: trigflow train own_recipe:spiral_teacher train.batch=128 --out runs/spiral (in this folder), and once more from
the file that it wrote: trigflow train runs/spiral/recipe.json --trust-code --out runs/again
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

import trigflow
from trigflow import Recipe, recipes
from trigflow.data import Dataset
from trigflow.data.codecs import VectorCodec
from trigflow.system.config import Component


def spirals(n: int = 10_000, arms: int = 2, sigma_data: float = 0.5) -> Dataset:
    """Points (n, 2) on spiral arms, each arm a class. Options of the recipe are arguments: data.arms=3.

    sigma_data is not in the recipe's data: whoever builds the data set gives it to a function that names it.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % arms
    radius = torch.rand(n, generator=generator).sqrt()
    angle = 6 * radius + 2 * torch.pi * labels / arms
    points = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    points += 0.02 * torch.randn(n, 2, generator=generator)
    return Dataset("spirals", points, labels, arms, VectorCodec.measure(points, sigma_data))


def spiral_teacher() -> Recipe:
    """A diffusion teacher of the spirals: what is not said here is as in the recipe of the mixture."""
    base = recipes.get("mixture2d-teacher", ["train.total_nimg=512000"])
    return replace(base, name="spiral-teacher", data=Component("own_recipe:spirals", {"arms": 2}))


def main(out: Path = Path("runs/spiral"), overrides: tuple[str, ...] = ()) -> torch.Tensor:
    folder = trigflow.train(recipes.get("own_recipe:spiral_teacher", overrides), out)
    return trigflow.load(folder).sample(64)


if __name__ == "__main__":
    print(main().std(dim=0))
