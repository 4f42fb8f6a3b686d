"""DINOv2: features learned without labels, which judge photographs more as people do than Inception's.

Oquab et al., "DINOv2: learning robust visual features without supervision", 2023, arXiv 2304.07193; proposed for scores
by Stein et al., "Exposing flaws of generative model evaluation metrics", 2023, arXiv 2306.04675 (ViT-L/14). The weights
are those that facebookresearch/dinov2 publishes; layers have its names: cls_token, pos_embed, patch_embed.proj,
blocks.N.{norm1, attn.qkv, attn.proj, ls1.gamma, norm2, mlp.fc1, mlp.fc2 (giant: mlp.w12, mlp.w3), ls2.gamma}, norm.
mask_token serves training alone and is dropped. Input: 224x224, bicubic with smoothing, ImageNet's mean and standard
deviation. Output: the class token after the last normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from trigflow.evaluation.metrics.images import imagenet_standard, resized_bicubic, rgb
from trigflow.evaluation.metrics.weights import filled


@dataclass(frozen=True)
class Size:
    """Of a vision transformer.

    Args:
        width: of a token, and of the features.
        depth: blocks.
        heads: of the attention.
        gated: whether the layers behind it are gated (SwiGLU), as in the giant.
        patch: pixels along a patch.
        grid: patches along the side of the images it was trained on (pos_embed).
        image: pixels along the side of the images it gets here.
    """

    width: int
    depth: int
    heads: int
    gated: bool = False
    patch: int = 14
    grid: int = 37
    image: int = 224


SMALL, BASE, LARGE = Size(384, 12, 6), Size(768, 12, 12), Size(1024, 24, 16)
GIANT = Size(1536, 40, 24, gated=True)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class _Plain(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return out


class _Gated(nn.Module):
    """SwiGLU: two thirds of the plain width, rounded up to a multiple of 8."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        self.w12, self.w3 = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(functional.silu(gate) * value)
        return out


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TransformerBlock(nn.Module):
    """x + gamma_1 attention(norm_1(x)), then x + gamma_2 mlp(norm_2(x)); tokens (B, L, width)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = _Attention(width, size.heads)
        self.mlp = _Gated(width) if size.gated else _Plain(width)
        self.ls1, self.ls2 = _Scale(width), _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class _Patches(nn.Module):
    def __init__(self, size: Size) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, size.width, size.patch, size.patch)

    def forward(self, images: Tensor) -> Tensor:
        tokens: Tensor = self.proj(images).flatten(2).transpose(1, 2)
        return tokens


class DinoV2(nn.Module):
    """uint8 images -> the class token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + size.grid**2, size.width))
        self.patch_embed = _Patches(size)
        self.blocks = nn.Sequential(*(TransformerBlock(size) for _ in range(size.depth)))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    @property
    def preparation(self) -> str:
        """What happens to an image before the first layer."""
        side = self.size.image
        return f"{side}x{side}, bicubic with smoothing, ImageNet's mean and std"

    def positions(self) -> Tensor:
        """(1, 1 + n^2, width): the embedding of the class token, and those of the grid brought to n patches a side.

        The factor is (n + 0.1) / grid, as in the reference; it moves the places of the patches a little.
        """
        n, grid = self.size.image // self.size.patch, self.size.grid
        if n == grid:
            return self.pos_embed
        own, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        square = patches.transpose(1, 2).reshape(1, -1, grid, grid)
        factor = (n + 0.1) / grid
        square = functional.interpolate(square, scale_factor=(factor, factor), mode="bicubic")
        return torch.cat([own, square.flatten(2).transpose(1, 2)], 1)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) uint8 -> (B, width)."""
        images = imagenet_standard(resized_bicubic(rgb(samples), self.size.image))
        tokens = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.positions()
        features: Tensor = self.norm(self.blocks(tokens))[:, 0]
        return features


def load_dinov2(path: Path, wanted: str, size: Size) -> DinoV2:
    """The network with the weights of a file.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    return filled(partial(DinoV2, size), path, wanted, unused=("mask_token",))
