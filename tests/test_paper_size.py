"""Size S of ImageNet-512 at its full width: one real step of each objective, from latents to a model on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from small_autoencoders import write_kl

from trigflow import load, recipes
from trigflow.data import load_collection
from trigflow.data.autoencoder import load_autoencoder
from trigflow.data.prepare.encode import Encoding, encode
from trigflow.models.storage import read_card
from trigflow.training.loop import train

# Two images: the recipes' batch is 2,048.
SHORT = ("train.batch=2", "train.total_nimg=2", "train.microbatch=1", "train.tensorboard=false")


def latents_of_two_images(folder: Path) -> Path:
    """Of the shape that sd-vae-ft-mse makes of 512x512 (a small autoencoder makes it of 128x128)."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.array([0, 1]))
    vae, out = write_kl(folder / "vae"), folder / "latents"
    autoencoder = load_autoencoder(vae, torch.device("cpu"))
    collection = load_collection(str(folder / "images.npz"))
    encode(collection, autoencoder, (vae, str(vae)), out, Encoding(), progress=False)
    return out


@pytest.mark.slow
def test_a_step_of_each_objective_of_size_s(tmp_path: Path) -> None:
    own = (*SHORT, f"data={latents_of_two_images(tmp_path)}")
    teacher = tmp_path / "imagenet512-s-teacher"
    of_role = {"teacher": (), "sct": (f"init={teacher}",), "scd": (f"teacher={teacher}",)}
    for role, more in of_role.items():
        recipe = recipes.get(f"imagenet512-s-{role}", [*own, *more])
        run = train(recipe, tmp_path / recipe.name, device="cpu", progress=False)
        (line,) = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
        assert line["nimg"] == 2 and np.isfinite(line["loss"]) and line["grad_norm"] > 0
        assert read_card(run).data_shape == (4, 64, 64)
        shutil.rmtree(run / "checkpoints")  # 4.7 GB
    model = load(tmp_path / "imagenet512-s-scd")
    assert model.num_parameters == pytest.approx(
        293.9e6, rel=5e-3
    )  # two classes of 1,000, but guidance as an input
    assert model.sample(1, steps=1, guidance_scale=1.5).shape == (1, 3, 128, 128)
    for name in of_role:
        shutil.rmtree(tmp_path / f"imagenet512-s-{name}")
