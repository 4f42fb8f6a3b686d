"""The recipes of ImageNet have the constants of the paper: tables 4 to 8 and appendix G of arXiv 2410.11081."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from trigflow import recipes
from trigflow.networks.edm2 import EDM2_SIZES
from trigflow.objectives import OBJECTIVES
from trigflow.recipes.imagenet import IMAGENET, TABLES
from trigflow.recipes.schema import Recipe
from trigflow.system.errors import UserError
from trigflow.training.assembly import assemble
from trigflow.training.loop import train
from trigflow.training.optimisers import learning_rate

NETWORKS = [f"{data}-{size}" for data, table in TABLES.items() for size in table.sizes]

# The constants themselves stand once, in recipes/imagenet.py, laid out as in the paper. Here one network of each data
# set, read from the paper again: thousands of steps, learning rate, dropout, guidance scale, FID.
TEACHERS = {
    "imagenet64-s": (1048, 1e-2, 0.0, 1, "1.70"),
    "imagenet512-xxl": (376, 6.5e-3, 0.1, 1.2, "1.73"),
}
STUDENTS = {
    "imagenet64-s-sct": (400, 1e-4, 0.45, 1, "3.23 in one step, 2.93 in two"),
    "imagenet64-s-scd": (400, 1e-4, 0.0, 1, "2.97 in one step, 2.07 in two"),
    "imagenet512-xxl-sct": (100, 6.5e-5, 0.35, 1, "4.29 in one step, 3.76 in two"),
    "imagenet512-xxl-scd": (200, 6.5e-5, 0.1, (1.0, 2.0), "2.28 in one step, 1.88 in two"),
}
# Of a data set: P_mean and P_std of teacher and student, steps before the rate decays, label dropout of the teacher.
OF_DATA = {
    "imagenet64": ((-0.8, 1.6), (-1.0, 1.6), 35_000, 0.0),
    "imagenet512": ((-0.4, 1.0), (-0.8, 1.6), 70_000, 0.1),
}


def steps_of(recipe: Recipe) -> float:
    """In thousands."""
    return recipe.train.total_nimg / recipe.train.batch / 1000


def test_there_is_a_teacher_and_two_students_of_every_size() -> None:
    assert set(IMAGENET) == {f"{name}-{role}" for name in NETWORKS for role in ("teacher", "sct", "scd")}
    for table in TABLES.values():
        assert table.channels == tuple(EDM2_SIZES[size.upper()] for size in table.sizes)


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers(name: str) -> None:
    recipe = recipes.get(f"{name}-teacher")
    steps, lr, dropout, scale, fid = TEACHERS[name]
    P, _, t_ref, label_dropout = OF_DATA[name.partition("-")[0]]
    assert steps_of(recipe) == steps
    assert (recipe.optimizer.lr, recipe.optimizer.rampup_nimg) == (lr, 10_000_000)
    assert recipe.network.options["dropout"] == dropout
    assert (recipe.objective.options["P_mean"], recipe.objective.options["P_std"]) == P
    assert recipe.optimizer.schedule.options == {"t_ref": t_ref}
    assert recipe.train.label_dropout == label_dropout
    sampling = recipe.sampling
    assert (sampling.sampler, sampling.steps, sampling.guidance_scale) == ("heun", 32, scale)
    text = IMAGENET[recipe.name].__doc__ or ""
    assert f"FID {fid} in the paper, not reproduced" in text
    assert ("(63 NFE)" if scale == 1 else f"guided at {scale} (2 x 63 NFE)") in text


@pytest.mark.parametrize("name", STUDENTS)
def test_students(name: str) -> None:
    recipe = recipes.get(name)
    steps, lr, dropout, scale, fids = STUDENTS[name]
    data, _, role = name.split("-")
    _, P, t_ref, _ = OF_DATA[data]
    assert steps_of(recipe) == steps
    assert recipe.optimizer.lr == pytest.approx(lr)
    assert (recipe.optimizer.eps, recipe.optimizer.rampup_nimg) == (1e-11, 0)
    assert recipe.optimizer.schedule.options == {"t_ref": t_ref}
    options = recipe.network.options
    assert (options["dropout"], options["dropout_resolution"]) == (dropout, 16)
    assert recipe.ema.ema_std == (0.05,)
    objective = OBJECTIVES[role](**recipe.objective.options)
    assert (objective.P_mean, objective.P_std) == P
    assert (objective.c, objective.warmup, objective.warmup_unit) == (0.1, 10_000, "steps")
    assert (objective.normalization, objective.adaptive_weight) == ("l2", True)
    assert objective.guidance_scale == scale  # the paper: s ~ U[1, 2], an input of the network
    takes_scale = isinstance(scale, tuple)
    assert options.get("guidance_input", False) == takes_scale
    assert recipe.sampling.guidance_scale == (1.2 if takes_scale else 1)
    assert f"FID {fids} in the paper, not reproduced here" in " ".join((IMAGENET[name].__doc__ or "").split())


@pytest.mark.parametrize("name", sorted(IMAGENET))
def test_what_all_have_in_common(name: str) -> None:
    recipe = recipes.get(name)
    assert recipe.network.name == "edm2"
    assert recipe.network.options["channels"] == EDM2_SIZES[name.split("-")[1].upper()]
    assert recipe.train.batch == 2048
    assert recipe.train.precision == "bfloat16"
    assert recipe.precond.sigma_data == 0.5
    assert (recipe.optimizer.name, recipe.optimizer.betas) == ("adam", (0.9, 0.99))
    assert recipe.optimizer.schedule.name == "inverse_sqrt"
    assert recipe.ema.kind == "power"


def test_the_learning_rate_is_edm2s() -> None:
    """alpha_ref / sqrt(max(nimg / (t_ref batch), 1)), times min(nimg / 10 million, 1) for the teacher."""
    recipe = recipes.get("imagenet512-xxl-teacher")
    rate = learning_rate(recipe.optimizer, 2048, recipe.train.total_nimg)
    assert rate(5_000_000 - 2048) == pytest.approx(6.5e-3 / 2)
    assert rate(280_000 * 2048) == pytest.approx(6.5e-3 / 2)
    assert rate(20_000_000) == pytest.approx(6.5e-3)


def test_a_student_without_its_teacher_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("images.npz", images=np.arange(2 * 3 * 64 * 64).astype(np.uint8).reshape(2, 3, 64, 64))
    with pytest.raises(UserError, match="no model 'runs/imagenet64-s-teacher'"):
        assemble(recipes.get("imagenet64-s-sct", ["data=images.npz"]), torch.device("cpu"))


def test_they_can_be_trained_and_built(tmp_path: Path) -> None:
    """On a few images; the network is narrowed, but keeps its levels and its attention."""
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 64, 64), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images, labels=np.arange(4))
    own = [f"data={tmp_path / 'images.npz'}", "network.channels=8", "network.num_blocks=1"]
    teacher = tmp_path / "teacher"
    short = ["train.batch=2", "train.total_nimg=2", "sampling.grid_nimg=0", "train.tensorboard=false"]
    train(recipes.get("imagenet64-s-teacher", [*own, *short]), teacher, device="cpu", progress=False)
    for name, source in (("imagenet64-s-scd", "teacher"), ("imagenet64-s-sct", "init")):
        parts = assemble(recipes.get(name, [*own, f"{source}={teacher}"]), torch.device("cpu"))
        assert ("teacher" in parts.nets) == (source == "teacher")
