"""Recipes: one function for each, returning all that a run depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trigflow.config import Component, apply_overrides
from trigflow.errors import UserError, did_you_mean
from trigflow.recipe import EMAConfig, OptimizerConfig, Recipe, SamplingConfig, TrainConfig

# A time embedding that can tell t = 0.1 from t = 0.3; students need _STABLE with it (docs/LOG.md).
_FOURIER = {"time_embedding": "fourier", "fourier_scale": 0.5}
# On 64 pixels an MLP learns more per minute than a U-Net (docs/LOG.md).
_DIGITS_NETWORK = Component("mlp", {"width": 384, "depth": 3, "hidden": 384, "emb_channels": 128, **_FOURIER})
# 0.055 GFLOP and 0.42 million parameters; at equal time it leaves MLPs and transformers far behind (docs/LOG.md).
_MNIST_NETWORK = Component(
    "unet",
    {"patch": 2, "channels": 28, "channel_mult": [1, 2], "num_blocks": 1, "emb_channels": 96, **_FOURIER},
)
_MNIST_DATA = Component("mnist", {"folder": "data/mnist"})
_MIXTURE2D_NETWORK = Component("mlp", _FOURIER)
_LINEAR_DECAY = Component("linear")
# No factor depends on the size of the tangent, and with this proposal the weight of time falls from data to noise, so
# that the iteration contracts (docs/objectives.md, "What makes it stable").
_STABLE = {"P_mean": -0.8, "P_std": 1.8, "normalization": "none", "adaptive_weight": False}


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
        network=_DIGITS_NETWORK,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=TrainConfig(total_nimg=256 * 2_500, batch=256, log_nimg=25_600, checkpoint_nimg=128_000),
        optimizer=OptimizerConfig(lr=3e-3, schedule=_LINEAR_DECAY),
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
        network=_DIGITS_NETWORK,
        objective=Component("scd", {**_STABLE, "warmup": 256 * 4_000, "warmup_unit": "images"}),
        train=TrainConfig(
            total_nimg=256 * 40_000,
            batch=256,
            synthetic=50_000,
            log_nimg=25_600,
            checkpoint_nimg=512_000,
        ),
        optimizer=OptimizerConfig(lr=7e-4, schedule=_LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=256_000),
        sampling=SamplingConfig(grid_nimg=1_024_000),
    )


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
        network=_DIGITS_NETWORK,
        objective=Component("sct", {**_STABLE, "warmup": 256 * 2_000, "warmup_unit": "images"}),
        init="digits-teacher",
        train=TrainConfig(total_nimg=256 * 20_000, batch=256, log_nimg=25_600, checkpoint_nimg=512_000),
        optimizer=OptimizerConfig(lr=3e-4, schedule=_LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=256_000),
        sampling=SamplingConfig(grid_nimg=1_024_000),
    )


def mnist_teacher() -> Recipe:
    """TrigFlow diffusion teacher of MNIST, with dropped labels for guidance.

    Command: trigflow train mnist-teacher data.folder=FOLDER_OF_THE_IDX_FILES --out runs/mnist-teacher
    Cost: 100 minutes on two cores.
    Sampler: heun, 32 steps (63 NFE).
    """
    return Recipe(
        name="mnist-teacher",
        data=_MNIST_DATA,
        network=_MNIST_NETWORK,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=TrainConfig(
            total_nimg=256 * 12_000, batch=256, label_dropout=0.1, log_nimg=25_600, checkpoint_nimg=128_000
        ),
        optimizer=OptimizerConfig(lr=3e-3, schedule=_LINEAR_DECAY),
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
        data=_MNIST_DATA,
        network=_MNIST_NETWORK,
        objective=Component("scd", {**_STABLE, "warmup": 256 * 3_000, "warmup_unit": "images"}),
        train=TrainConfig(total_nimg=256 * 12_000, batch=256, log_nimg=25_600, checkpoint_nimg=128_000),
        optimizer=OptimizerConfig(lr=7e-4, schedule=_LINEAR_DECAY),
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
        data=_MNIST_DATA,
        network=_MNIST_NETWORK,
        objective=Component("sct", {**_STABLE, "warmup": 256 * 3_000, "warmup_unit": "images"}),
        init="scratch",
        train=TrainConfig(total_nimg=256 * 12_000, batch=256, log_nimg=25_600, checkpoint_nimg=128_000),
        optimizer=OptimizerConfig(lr=3e-4, schedule=_LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(grid_nimg=512_000),
    )


def mixture2d_teacher() -> Recipe:
    """TrigFlow diffusion teacher of eight Gaussians in the plane.

    Command: trigflow train mixture2d-teacher --out runs/mixture2d-teacher
    Cost: 3 minutes on one core.
    """
    return Recipe(
        name="mixture2d-teacher",
        data=Component("mixture2d"),
        network=_MIXTURE2D_NETWORK,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=TrainConfig(total_nimg=512 * 10_000, batch=512, log_nimg=51_200, checkpoint_nimg=512_000),
        optimizer=OptimizerConfig(lr=2e-3, schedule=_LINEAR_DECAY),
        sampling=SamplingConfig(sampler="heun", steps=32),
    )


def mixture2d_scd() -> Recipe:
    """sCD of the mixture from its exact velocity: the student's flow map is scored point by point.

    Command: trigflow train mixture2d-scd teacher=exact --out runs/mixture2d-scd
    Cost: 4 minutes on one core. During the warm-up the tangent is the error of a velocity: diffusion training.
    Score: distance to the exact flow map 0.020 (median) and 0.038 (RMS) of sigma_data (results/mixture2d.json).
    """
    return Recipe(
        name="mixture2d-scd",
        data=Component("mixture2d"),
        network=_MIXTURE2D_NETWORK,
        objective=Component("scd", {**_STABLE, "warmup": 3_000}),
        teacher="exact",
        train=TrainConfig(total_nimg=512 * 10_000, batch=512, log_nimg=51_200, checkpoint_nimg=512_000),
        optimizer=OptimizerConfig(lr=5e-4, schedule=_LINEAR_DECAY),
        sampling=SamplingConfig(steps=1, flow_map_num=10_000),
    )


def mixture2d_sct() -> Recipe:
    """sCT of the mixture, from data alone, its velocities averaged over the batch.

    Command: trigflow train mixture2d-sct --out runs/mixture2d-sct
    Cost: 5 minutes on one core.
    Score: distance to the exact flow map 0.028 (median) and 0.063 (RMS) of sigma_data (results/mixture2d.json).
    """
    return Recipe(
        name="mixture2d-sct",
        data=Component("mixture2d"),
        network=_MIXTURE2D_NETWORK,
        objective=Component("sct", {**_STABLE, "warmup": 3_000, "stable_target": True}),
        train=TrainConfig(total_nimg=512 * 10_000, batch=512, log_nimg=51_200, checkpoint_nimg=512_000),
        optimizer=OptimizerConfig(lr=5e-4, schedule=_LINEAR_DECAY),
        sampling=SamplingConfig(steps=1, flow_map_num=10_000),
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "digits-teacher": digits_teacher,
    "digits-scd": digits_scd,
    "digits-sct": digits_sct,
    "mnist-teacher": mnist_teacher,
    "mnist-scd": mnist_scd,
    "mnist-sct": mnist_sct,
    "mixture2d-teacher": mixture2d_teacher,
    "mixture2d-scd": mixture2d_scd,
    "mixture2d-sct": mixture2d_sct,
}


def get(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe by name, with changes `key=value`.

    Raises:
        UserError: unknown recipe or key, a value of a wrong type or out of range.
    """
    if name not in RECIPES:
        raise UserError(
            f"unknown recipe '{name}'{did_you_mean(name, RECIPES)}; there are: {', '.join(RECIPES)}"
        )
    return apply_overrides(RECIPES[name](), overrides)
