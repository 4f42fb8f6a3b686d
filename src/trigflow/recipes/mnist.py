"""Recipes for MNIST, sized for two cores."""

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
from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, SamplingConfig
from trigflow.system.config import Component

_DATA = Component("mnist", {"folder": "data/mnist"})
# The teacher's distance is smallest between 1.3 and 1.5 (docs/LOG.md).
GUIDANCE_SCALE = 1.4


def mnist_teacher() -> Recipe:
    """TrigFlow diffusion teacher of MNIST, with dropped labels for guidance.

    Command: trigflow train mnist-teacher data.folder=FOLDER_OF_THE_IDX_FILES --out runs/mnist-teacher
    Cost: an hour on one core.
    Sampler: heun, 32 steps, guided (2 x 63 NFE).
    Score: FD-mnist-classifier 0.020, reproduced by the shipped model (results/mnist.json).
    """
    return Recipe(
        name="mnist-teacher",
        data=_DATA,
        network=SMALL_UNET,
        objective=Component("diffusion", {"P_mean": -0.8, "P_std": 1.5}),
        train=small_training(12_000, label_dropout=0.1),
        optimizer=OptimizerConfig(lr=3e-3, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=100_000),
        sampling=SamplingConfig(sampler="heun", steps=32, guidance_scale=GUIDANCE_SCALE, grid_nimg=512_000),
    )


def mnist_scd() -> Recipe:
    """Distils an MNIST teacher into one and two steps (sCD; arXiv 2410.11081, Algorithm 1).

    Command: trigflow train mnist-scd data.folder=FOLDER teacher=runs/mnist-teacher --out runs/mnist-scd
    Cost: an hour on one core.
    Sampler: consistency, 1 or 2 NFE.
    Score: FD-mnist-classifier 0.092 in one step, 0.036 in two (docs/LOG.md); mnist-scd-fine goes on from here.
    """
    return Recipe(
        name="mnist-scd",
        data=_DATA,
        network=SMALL_STUDENT,
        objective=Component("scd", {**HALFWAY, "warmup": [[768_000, 0.5]], "guidance_scale": GUIDANCE_SCALE}),
        train=small_training(5_600),
        optimizer=OptimizerConfig(lr=7e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=60_000),
        sampling=SamplingConfig(t_mid=0.9, grid_nimg=512_000),
    )


def mnist_scd_fine() -> Recipe:
    """Goes on with an MNIST student: products in float32, and the guidance scale as an input, drawn from [1, 1.6].

    The last training phase of the shipped student (docs/LOG.md). It starts from the shipped one, or from another one:
    init=runs/mnist-scd.

    Command: trigflow train mnist-scd-fine data.folder=FOLDER teacher=runs/mnist-teacher --out runs/mnist-scd-fine
    Cost: 25 minutes on one core.
    Sampler: consistency, 1 or 2 NFE.
    Score: FD-mnist-classifier 0.086 in one step, 0.031 in two, reproduced by the shipped model (results/mnist.json).
    """
    student = mnist_scd()
    options = {
        **student.objective.options,
        "warmup": [[0, 0.5]],
        "guidance_scale": [1.0, 1.6],
        "compile": True,
    }
    return replace(
        student,
        name="mnist-scd-fine",
        init="mnist",
        network=Component("unet", {**SMALL_STUDENT.options, "guidance_input": True}),
        objective=Component("scd", options),
        train=replace(student.train, total_nimg=256 * 1_600, precision="float32"),
        optimizer=OptimizerConfig(lr=3e-4, schedule=LINEAR_DECAY),
        ema=EMAConfig(kind="halflife", halflife_nimg=30_000),
        sampling=SamplingConfig(guidance_scale=GUIDANCE_SCALE, t_mid=0.9, grid_nimg=128_000),
    )


def mnist_scd_vsd() -> Recipe:
    """Distils an MNIST teacher into one and two steps, by sCD and score distillation (arXiv 2410.11081, "sCD + VSD").

    The guidance scale is an input of the student, drawn from [1, 1.6]. It starts from the teacher; from a student it
    ends better: add init=runs/mnist-scd objective.warmup=[[0,0.5]] optimizers.net.lr=1.5e-4.

    Command: trigflow train mnist-scd-vsd data.folder=FOLDER teacher=runs/mnist-teacher --out runs/mnist-scd-vsd
    Cost: an hour on one core.
    Sampler: consistency, 1 or 2 NFE.
    """
    recipe = with_score_distillation(mnist_scd(), "mnist-scd-vsd", 800_000)
    return replace(
        recipe,
        network=Component("unet", {**SMALL_STUDENT.options, "guidance_input": True}),
        objective=Component("scd_vsd", {**recipe.objective.options, "guidance_scale": [1.0, 1.6]}),
        sampling=SamplingConfig(guidance_scale=GUIDANCE_SCALE, t_mid=0.9, grid_nimg=128_000),
    )


def mnist_sct() -> Recipe:
    """Consistency training on MNIST, without a teacher's velocity (sCT; arXiv 2410.11081, Algorithm 1).

    It starts from the weights of the shipped teacher, or of another one: init=runs/mnist-teacher.

    Command: trigflow train mnist-sct data.folder=FOLDER --out runs/mnist-sct
    Cost: an hour on one core.
    Sampler: consistency, 1 or 2 NFE.
    Score: FD-mnist-classifier 0.251 in one step, 0.052 in two, 0.035 in four (results/mnist-sct.json).
    """
    return replace(
        mnist_scd(),
        name="mnist-sct",
        objective=Component("sct", {**HALFWAY, "warmup": [[768_000, 0.5]], "stable_target": True}),
        init="mnist-teacher",
        sampling=SamplingConfig(grid_nimg=512_000),
    )
