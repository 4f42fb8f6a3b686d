"""Autoencoders of diffusers that are small enough for a test: random weights, but otherwise as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch


def write_kl(folder: Path, image_channels: int = 3, seed: int = 0) -> Path:
    """An AutoencoderKL of 44 thousand parameters: images (C, H, W) -> latents (4, H/2, W/2)."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = diffusers.AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
        )
    vae.save_pretrained(folder)
    return folder


def write_dc(folder: Path) -> Path:
    """An AutoencoderDC: images (3, H, W) -> latents (4, H/4, W/4), which are certain."""
    diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderDC(
            latent_channels=4,
            attention_head_dim=8,
            encoder_block_out_channels=(8, 16, 16),
            decoder_block_out_channels=(8, 16, 16),
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), ()),
            decoder_qkv_multiscales=((), (), ()),
        )
    vae.save_pretrained(folder)
    return folder
