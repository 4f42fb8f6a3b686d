"""What recipes of small networks have in common."""

from __future__ import annotations

from trigflow.recipes.schema import TrainConfig
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
