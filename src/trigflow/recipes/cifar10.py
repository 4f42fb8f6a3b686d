"""Recipes for CIFAR-10: at the paper's size, and the same pipeline at the size of two cores.

The data is EDM's zip of the 50,000 training images (`trigflow data prepare` writes one from any other form).
"""

from __future__ import annotations

from dataclasses import replace

from trigflow.recipes.constants import (
    HALFWAY,
    LINEAR_DECAY,
    SMALL_STUDENT,
    SMALL_UNET,
    small_training,
    with_score_distillation,
)
from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig
from trigflow.system.config import Component

_DATA = Component("edm_zip", {"path": "data/cifar10-32x32.zip"})
_UNLABELLED = Component("edm_zip", {"path": "data/cifar10-32x32.zip", "labels": False, "flip": True})

_TRAIN = TrainConfig(total_nimg=512 * 400_000, batch=512, log_nimg=51_200, checkpoint_nimg=2_048_000)
_EMA = EMAConfig(kind="halflife", halflife_nimg=500_000)


def _ddpmpp(dropout: float) -> Component:
    """DDPM++ as EDM builds it, with sCM's double normalisation: 60.1 million parameters (as published: 55.7).

    The size, the attention at 16 pixels and all else are the network's defaults.
    """
    return Component("ddpmpp", {"dropout": dropout})


def cifar10_teacher() -> Recipe:
    """TrigFlow diffusion teacher of unconditional CIFAR-10 (arXiv 2410.11081, appendix G.1).

    Command: trigflow train cifar10-teacher --out runs/cifar10-teacher
    Cost: 205 million images through a network of 60 million parameters: GPUs.
    Sampler: heun, 18 steps (35 NFE).
    Score: FID 2.15 in the paper, not reproduced here (of EDM's augmentations it has the flips).
    """
    return Recipe(
        name="cifar10-teacher",
        data=_UNLABELLED,
        network=_ddpmpp(dropout=0.13),
        objective=Component("diffusion", {"P_mean": -1.2, "P_std": 1.2}),
        train=_TRAIN,
        optimizer=OptimizerConfig(name="adam", lr=1e-3, betas=(0.9, 0.999), rampup_nimg=10_000_000),
        ema=_EMA,
        sampling=SamplingConfig(sampler="heun", steps=18, grid_nimg=2_048_000),
    )


def cifar10_scd() -> Recipe:
    """sCD of CIFAR-10 with the paper's constants (arXiv 2410.11081, appendix G.2).

    Command: trigflow train cifar10-scd teacher=runs/cifar10-teacher --out runs/cifar10-scd
    Cost: as many images as its teacher (the paper does not say how many), each nearly twice as expensive: GPUs.
    Sampler: consistency, 1 or 2 NFE.
    Score: FID 3.66 in one step, 2.52 in two in the paper, not reproduced here.
    """
    return Recipe(
        name="cifar10-scd",
        data=_UNLABELLED,
        network=_ddpmpp(dropout=0.0),
        objective=Component("scd", {"P_mean": -1.0, "P_std": 1.4, "normalization": "l2"}),
        train=_TRAIN,
        optimizer=OptimizerConfig(lr=1e-4),
        ema=_EMA,
        sampling=SamplingConfig(grid_nimg=2_048_000),
    )


def cifar10_sct() -> Recipe:
    """sCT of CIFAR-10 with the paper's constants (arXiv 2410.11081, appendix G.2), from its teacher's weights.

    Command: trigflow train cifar10-sct --out runs/cifar10-sct
    Cost: as `cifar10-scd`.
    Sampler: consistency, 1 or 2 NFE.
    Score: FID 2.85 in one step, 2.06 in two in the paper, not reproduced here.
    """
    student = cifar10_scd()
    return replace(
        student,
        name="cifar10-sct",
        network=_ddpmpp(dropout=0.20),
        objective=Component("sct", student.objective.options),
        init="runs/cifar10-teacher",
    )


def cifar10_small_teacher() -> Recipe:
    """TrigFlow diffusion teacher of labelled CIFAR-10 for two cores: the pipeline, not the paper's quality.

    Command: trigflow train cifar10-small-teacher data.path=FILE.zip --out runs/cifar10-small-teacher
    Cost: 25 minutes on one core.
    Sampler: heun, 18 steps (35 NFE).
    Score: FD-resnet20 12.5, reproduced (results/cifar10-small.json); test images have 0.02.
    """
    return Recipe(
        name="cifar10-small-teacher",
        data=_DATA,
        network=SMALL_UNET,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=small_training(4_000, label_dropout=0.1),
        optimizer=OptimizerConfig(lr=3e-3, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(sampler="heun", steps=18, grid_nimg=256_000),
    )


def cifar10_small_scd() -> Recipe:
    """Distils a small CIFAR-10 teacher into one and two steps.

    Command: trigflow train cifar10-small-scd data.path=FILE.zip teacher=runs/cifar10-small-teacher \
        --out runs/cifar10-small-scd
    Cost: 50 minutes on one core.
    Sampler: consistency, 1 or 2 NFE.
    Score: FD-resnet20 11.2 in one step, 11.4 in two, reproduced (results/cifar10-small.json).
    """
    return Recipe(
        name="cifar10-small-scd",
        data=_DATA,
        network=SMALL_STUDENT,
        objective=Component("scd", {**HALFWAY, "warmup": [[512_000, 0.5]]}),
        train=small_training(4_000),
        optimizer=OptimizerConfig(lr=7e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=50_000),
        sampling=SamplingConfig(grid_nimg=256_000),
    )


def cifar10_small_scd_vsd() -> Recipe:
    """Distils a small CIFAR-10 teacher into one and two steps, by sCD and score distillation.

    Command: trigflow train cifar10-small-scd-vsd data.path=FILE.zip teacher=runs/cifar10-small-teacher \
        --out runs/cifar10-small-scd-vsd
    Cost: an hour on one core.
    Sampler: consistency, 1 or 2 NFE.
    """
    return with_score_distillation(cifar10_small_scd(), "cifar10-small-scd-vsd", 800_000)
