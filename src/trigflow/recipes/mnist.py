"""Recipes for MNIST, sized for two cores."""

from __future__ import annotations

from trigflow.config import Component
from trigflow.recipe import EMAConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig
from trigflow.recipes.constants import FOURIER, LINEAR_DECAY, STABLE

# 0.07 GFLOP and 0.52 million parameters. At equal time convolutions leave MLPs and transformers far behind, and a
# multiple of 16 channels is what bfloat16 wants (docs/LOG.md).
_OPTIONS = {"patch": 2, "channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "emb_channels": 96}
_NETWORK = Component("unet", {**_OPTIONS, "middle_attention": False, **FOURIER})
_DATA = Component("mnist", {"folder": "data/mnist"})


def mnist_teacher() -> Recipe:
    """TrigFlow diffusion teacher of MNIST, with dropped labels for guidance.

    Command: trigflow train mnist-teacher data.folder=FOLDER_OF_THE_IDX_FILES --out runs/mnist-teacher
    Cost: 100 minutes on two cores.
    Sampler: heun, 32 steps (63 NFE).
    """
    return Recipe(
        name="mnist-teacher",
        data=_DATA,
        network=_NETWORK,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=TrainConfig(
            total_nimg=256 * 12_000,
            batch=256,
            label_dropout=0.1,
            precision="bfloat16",
            log_nimg=25_600,
            checkpoint_nimg=128_000,
        ),
        optimizer=OptimizerConfig(lr=3e-3, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(sampler="heun", steps=32, grid_nimg=512_000),
    )


def mnist_scd() -> Recipe:
    """Distils an MNIST teacher into one and two steps (sCD; arXiv 2410.11081, Algorithm 1).

    Command: trigflow train mnist-scd data.folder=FOLDER teacher=runs/mnist-teacher --out runs/mnist-scd
    Sampler: consistency, 1 or 2 NFE.
    """
    return Recipe(
        name="mnist-scd",
        data=_DATA,
        network=_NETWORK,
        objective=Component("scd", {**STABLE, "warmup": 256 * 3_000, "warmup_unit": "images"}),
        train=TrainConfig(
            total_nimg=256 * 12_000,
            batch=256,
            precision="bfloat16",
            log_nimg=25_600,
            checkpoint_nimg=128_000,
        ),
        optimizer=OptimizerConfig(lr=7e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(grid_nimg=512_000),
    )


def mnist_sct() -> Recipe:
    """Consistency training on MNIST from the weights of a teacher, without its velocity (sCT; Algorithm 1).

    Command: trigflow train mnist-sct data.folder=FOLDER init=runs/mnist-teacher --out runs/mnist-sct
    Sampler: consistency, 1 or 2 NFE.
    """
    return Recipe(
        name="mnist-sct",
        data=_DATA,
        network=_NETWORK,
        objective=Component("sct", {**STABLE, "warmup": 256 * 3_000, "warmup_unit": "images"}),
        init="scratch",
        train=TrainConfig(
            total_nimg=256 * 12_000,
            batch=256,
            precision="bfloat16",
            log_nimg=25_600,
            checkpoint_nimg=128_000,
        ),
        optimizer=OptimizerConfig(lr=3e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(grid_nimg=512_000),
    )
