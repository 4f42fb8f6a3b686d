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

# A line for each network: name, thousands of steps of the teacher, learning rate, dropout in per cent of teacher, sCT
# and sCD, relative deviation of the teacher's average; FID of the teacher, of sCT in 1 and 2 steps, of sCD likewise.
FACTS = """
imagenet64-s     1048  1e-2    0  45  0  0.075  1.70  3.23 2.93  2.97 2.07
imagenet64-m     1486  9e-3   10  45  0  0.06   1.55  2.25 1.81  2.79 1.89
imagenet64-l      761  8e-3   10  45  0  0.04   1.44  2.08 1.57  2.43 1.70
imagenet64-xl     540  7e-3   10  45  0  0.04   1.38  2.04 1.48  2.44 1.66
imagenet512-s    1048  1e-2    0  25  0  0.025  2.29 10.13 9.86  3.07 2.50
imagenet512-m    1048  9e-3   10  35 10  0.03   2.00  5.84 5.53  2.75 2.26
imagenet512-l     696  8e-3   10  35 10  0.015  1.87  5.15 4.65  2.55 2.04
imagenet512-xl    598  7e-3   10  35 10  0.02   1.80  4.33 3.73  2.40 1.93
imagenet512-xxl   376  6.5e-3 10  35 10  0.015  1.73  4.29 3.76  2.28 1.88
"""
LINES = [line.split() for line in FACTS.strip().splitlines()]
NETWORKS = [line[0] for line in LINES]

# Of a data set: P_mean and P_std of teacher and student, steps before the rate decays, thousands of steps of sCT and
# sCD, label dropout of the teacher.
OF_DATA = {
    "imagenet64": ((-0.8, 1.6), (-1.0, 1.6), 35_000, 400, 400, 0.0),
    "imagenet512": ((-0.4, 1.0), (-0.8, 1.6), 70_000, 100, 200, 0.1),
}
# Guidance at which the teacher and the sCD student are sampled: the best for the FID of the teacher and of two steps.
GUIDANCE = dict(zip(NETWORKS, [1, 1, 1, 1, 1.4, 1.2, 1.2, 1.2, 1.2], strict=True))


def steps_of(recipe: Recipe) -> float:
    """In thousands."""
    return recipe.train.total_nimg / recipe.train.batch / 1000


def test_there_is_a_teacher_and_two_students_of_every_size() -> None:
    assert set(IMAGENET) == {f"{name}-{role}" for name in NETWORKS for role in ("teacher", "sct", "scd")}
    for table in TABLES.values():
        assert table.channels == tuple(EDM2_SIZES[size.upper()] for size in table.sizes)


@pytest.mark.parametrize("line", LINES, ids=NETWORKS)
def test_teachers(line: list[str]) -> None:
    name, steps, lr, dropout = line[:4]
    recipe = recipes.get(f"{name}-teacher")
    P, _, t_ref, _, _, label_dropout = OF_DATA[name.partition("-")[0]]
    assert steps_of(recipe) == int(steps)
    assert recipe.optimizer.lr == float(lr)
    assert recipe.optimizer.rampup_nimg == 10_000_000
    assert recipe.network.options["dropout"] == float(dropout) / 100
    assert recipe.ema.ema_std == (float(line[6]),)
    assert (recipe.objective.options["P_mean"], recipe.objective.options["P_std"]) == P
    assert recipe.optimizer.schedule.options == {"t_ref": t_ref}
    assert recipe.train.label_dropout == label_dropout
    assert (recipe.sampling.sampler, recipe.sampling.steps) == ("heun", 32)
    assert recipe.sampling.guidance_scale == GUIDANCE[name]
    assert f"FID {line[7]} in the paper, not reproduced" in (IMAGENET[recipe.name].__doc__ or "")
    nfe = "(63 NFE)" if GUIDANCE[name] == 1 else f"guided at {GUIDANCE[name]} (2 x 63 NFE)"
    assert nfe in (IMAGENET[recipe.name].__doc__ or "")


@pytest.mark.parametrize("role", ["sct", "scd"])
@pytest.mark.parametrize("line", LINES, ids=NETWORKS)
def test_students(line: list[str], role: str) -> None:
    name, distils = line[0], role == "scd"
    recipe = recipes.get(f"{name}-{role}")
    _, P, t_ref, *steps, _ = OF_DATA[name.partition("-")[0]]
    assert steps_of(recipe) == steps[distils]
    assert recipe.optimizer.lr == pytest.approx(float(line[2]) / 100)
    assert (recipe.optimizer.eps, recipe.optimizer.rampup_nimg) == (1e-11, 0)
    assert recipe.optimizer.schedule.options == {"t_ref": t_ref}
    options = recipe.network.options
    assert options["dropout"] == float(line[5 if distils else 4]) / 100
    assert options["dropout_resolution"] == 16
    assert recipe.ema.ema_std == (0.05,)
    objective = OBJECTIVES[role](**recipe.objective.options)
    assert (objective.P_mean, objective.P_std) == P
    assert (objective.c, objective.warmup, objective.warmup_unit) == (0.1, 10_000, "steps")
    assert (objective.normalization, objective.adaptive_weight) == ("l2", True)
    told = distils and name.startswith("imagenet512")  # the paper: s ~ U[1, 2], an input of the network
    assert objective.guidance_scale == ((1.0, 2.0) if told else 1)
    assert options.get("guidance_input", False) == told
    assert recipe.sampling.guidance_scale == (GUIDANCE[name] if told else 1)
    text = " ".join((IMAGENET[recipe.name].__doc__ or "").split())
    one, two = line[10:] if distils else line[8:10]
    assert f"FID {one} in one step, {two} in two in the paper, not reproduced here" in text
    assert (f"told any guidance of 1 to 2 ({GUIDANCE[name]})" in text) == told


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
