"""What recipes of small networks have in common."""

from __future__ import annotations

from dataclasses import replace

from trigflow.recipes.schema import EMAConfig, OptimizerConfig, Recipe, TrainConfig
from trigflow.system.config import Component

# A time embedding that can tell t = 0.1 from t = 0.3; students need STABLE with it (docs/LOG.md).
FOURIER = {"time_embedding": "fourier", "fourier_scale": 0.5}
LINEAR_DECAY = Component("linear")
# No factor depends on the size of the tangent, and with this time distribution the weight of time falls from data to
# noise, so that the iteration contracts (docs/objectives.md, "What makes it stable").
STABLE = {"P_mean": -0.8, "P_std": 1.8, "normalization": "none", "adaptive_weight": False}
# 0.52 million parameters; 0.07 GFLOP for MNIST, 0.09 for CIFAR-10. At equal time convolutions leave MLPs and
# transformers far behind, and a multiple of 16 channels is what bfloat16 wants (docs/LOG.md).
SMALL_UNET = Component(
    "unet",
    {
        "patch": 2,
        "channels": 32,
        "channel_mult": [1, 2],
        "num_blocks": 1,
        "emb_channels": 96,
        "middle_attention": False,
        **FOURIER,
    },
)
# For students of SMALL_UNET: errors at small times fade, as r stops at a half, and the noise of training is averaged
# out of what is aimed at (docs/objectives.md, "Where the warm-up stops" and "A target network").
SMALL_STUDENT = Component("unet", {**SMALL_UNET.options, "input_gain": True})
HALFWAY = {**STABLE, "P_mean": -0.4, "warmup_unit": "images", "target_halflife": 8_000}

# The times of score distillation; all networks alike, so that one pass of fake serves both. They are wide: low noise
# levels show grain, high ones what a digit looks like as a whole, which keeps recall (docs/LOG.md).
_ALL_NOISE = {"vsd_P_mean": -0.8, "vsd_P_std": 2.4, "fake_P_mean": -0.8, "fake_P_std": 2.4}
# sCD, which holds f at all t, and score distillation of the first step and of the second one (docs/objectives.md).
SCD_VSD = {
    **HALFWAY,
    "warmup": [[100_000, 0.5]],
    **_ALL_NOISE,
    "vsd_weight": 6.0,
    "scd_share": 0.25,
    "second_share": 0.375,
}


def small_training(steps: int, label_dropout: float = 0.0) -> TrainConfig:
    """The loop of SMALL_UNET and its student: steps of 256 images."""
    return TrainConfig(
        total_nimg=256 * steps,
        batch=256,
        label_dropout=label_dropout,
        precision="bfloat16",
        log_nimg=25_600,
        checkpoint_nimg=128_000,
    )


def with_score_distillation(student: Recipe, name: str, total_nimg: int) -> Recipe:
    """sCD and score distillation, in the place of a student's sCD alone, from the weights of the teacher on.

    It ends nearer to the teacher where it goes on from a student of sCD: init=STUDENT, objective.warmup=[[0,0.5]] (a
    warm-up would undo what the student knows) and half the learning rate, optimizers.net.lr=1.5e-4 (docs/LOG.md).
    """
    options = {**SCD_VSD, "t_mid": student.sampling.t_mid}
    adam = OptimizerConfig(name="adam", lr=1e-3, schedule=LINEAR_DECAY)
    return replace(
        student,
        name=name,
        objective=Component("scd_vsd", options),
        train=replace(student.train, total_nimg=total_nimg, batch=64, synthetic=0),
        optimizer=adam,
        # The models of the samples must know what the student draws now: they learn faster, and in every step.
        optimizers={"net": replace(adam, lr=3e-4, update_period=2)},
        ema=EMAConfig(kind="halflife", halflife_nimg=10_000),
    )
