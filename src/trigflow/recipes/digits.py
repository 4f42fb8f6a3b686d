"""Recipes for scikit-learn's 8x8 digits: minutes on one core."""

from __future__ import annotations

from trigflow.recipes.constants import FOURIER, LINEAR_DECAY, STABLE, with_score_distillation
from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig
from trigflow.system.config import Component

# On 64 pixels an MLP learns more per minute than a U-Net (docs/LOG.md).
_NETWORK = Component("mlp", {"width": 384, "depth": 3, "hidden": 384, "emb_channels": 128, **FOURIER})


def digits_teacher() -> Recipe:
    """TrigFlow diffusion teacher of scikit-learn's 8x8 digits (arXiv 2410.11081, section 3).

    Short on purpose: a longer training comes closer to the 1,797 training images one by one (docs/LOG.md).

    Command: trigflow train digits-teacher --out runs/digits-teacher
    Cost: 2 minutes on one core.
    Sampler: heun, 32 steps (63 NFE).
    Score: FD-digits-classifier 0.064, reproduced by the shipped model (results/digits.json).
    """
    return Recipe(
        name="digits-teacher",
        data=Component("digits"),
        network=_NETWORK,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=TrainConfig(total_nimg=256 * 2_500, batch=256, log_nimg=25_600, checkpoint_nimg=128_000),
        optimizer=OptimizerConfig(lr=3e-3, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=88_600),
        sampling=SamplingConfig(sampler="heun", steps=32, grid_nimg=128_000),
    )


def digits_scd() -> Recipe:
    """Distils a digits teacher into one and two steps (sCD; arXiv 2410.11081, Algorithm 1).

    Command: trigflow train digits-scd teacher=runs/digits-teacher --out runs/digits-scd
    Cost: 40 minutes on one core.
    Sampler: consistency, 1 or 2 NFE.
    Score: FD-digits-classifier 0.079 in one step, 0.074 in two, reproduced by the shipped model (results/digits.json).
    """
    return Recipe(
        name="digits-scd",
        data=Component("digits"),
        network=_NETWORK,
        objective=Component("scd", {**STABLE, "warmup": 256 * 4_000, "warmup_unit": "images"}),
        train=TrainConfig(
            total_nimg=256 * 40_000, batch=256, synthetic=50_000, log_nimg=25_600, checkpoint_nimg=512_000
        ),
        optimizer=OptimizerConfig(lr=7e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=256_000),
        sampling=SamplingConfig(grid_nimg=1_024_000),
    )


def digits_scd_vsd() -> Recipe:
    """Distils a digits teacher into one and two steps, by sCD and score distillation (arXiv 2410.11081, "sCD + VSD").

    Command: trigflow train digits-scd-vsd teacher=runs/digits-teacher --out runs/digits-scd-vsd
    Cost: 5 minutes on one core.
    Sampler: consistency, 1 or 2 NFE.
    """
    return with_score_distillation(digits_scd(), "digits-scd-vsd", 400_000)


def digits_sct() -> Recipe:
    """Consistency training on digits, without a teacher's velocity (sCT; arXiv 2410.11081, Algorithm 1).

    It starts from the weights of the shipped teacher, or of another one: init=runs/digits-teacher.

    Command: trigflow train digits-sct --out runs/digits-sct
    Cost: 20 minutes on one core.
    Sampler: consistency, 1 or 2 NFE.
    """
    return Recipe(
        name="digits-sct",
        data=Component("digits"),
        network=_NETWORK,
        objective=Component("sct", {**STABLE, "warmup": 256 * 2_000, "warmup_unit": "images"}),
        init="digits-teacher",
        train=TrainConfig(total_nimg=256 * 20_000, batch=256, log_nimg=25_600, checkpoint_nimg=512_000),
        optimizer=OptimizerConfig(lr=3e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=256_000),
        sampling=SamplingConfig(grid_nimg=1_024_000),
    )
