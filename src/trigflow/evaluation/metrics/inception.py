"""Inception-v3 in the form of the FID: the features in which a Frechet distance may be called FID.

Szegedy et al., "Rethinking the inception architecture", 2015, arXiv 1512.00567; Heusel et al., 2017, arXiv 1706.08500.
The FID is defined by one set of weights, TensorFlow's of 2015-12-05, which pytorch-fid (mseitzer/pytorch-fid) publishes
for torch. Layers have torchvision's names: Conv2d_1a_3x3, 2a, 2b, 3b_1x1, 4a_3x3, each with .conv.weight and .bn.*;
Mixed_5b, 5c, 5d (A), 6a (B), 6b..6e (C), 7a (D), 7b, 7c (E) with their branches; fc with 1008 outputs. These weights
want what torchvision's network does not have: the average pools of A, C and the first E do not count the padding, and
the last E has a max pool in their place.

Input as pytorch-fid's: 299x299, bilinear without smoothing (align_corners=False), scaled to -1..1. Output: the 2048
averages over the last feature map; logits without the bias of fc, from which the Inception score is taken (as Salimans
et al., 2016, arXiv 1606.03498, do in their code).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trigflow.evaluation.metrics.images import rgb

SIZE = 299


class _Conv(nn.Module):
    """Convolution, batch normalisation, ReLU; the padding keeps the size at stride 1 unless `valid`."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: tuple[int, int] | int,
        stride: int = 1,
        valid: bool = False,
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (0, 0) if valid else (height // 2, width // 2)
        self.conv = nn.Conv2d(channels_in, channels, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


def mean_pool(x: Tensor) -> Tensor:
    """Averages over 3x3 pixels, at the border over those that are there."""
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class BlockA(nn.Module):
    """(B, C, 35, 35) -> (B, 224 + pooled, 35, 35)."""

    def __init__(self, c: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(c, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = _Conv(c, 48, 1), _Conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(c, 64, 1), _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3)
        self.branch_pool = _Conv(c, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))], 1)


class BlockB(nn.Module):
    """(B, C, 35, 35) -> (B, 480 + C, 17, 17)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(c, 384, 3, stride=2, valid=True)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(c, 64, 1), _Conv(64, 96, 3)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2, valid=True)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, functional.max_pool2d(x, 3, 2)], 1)


class BlockC(nn.Module):
    """(B, C, 17, 17) -> (B, 768, 17, 17), `c7` channels inside."""

    def __init__(self, c: int, c7: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(c, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = _Conv(c, c7, 1), _Conv(c7, c7, (1, 7))
        self.branch7x7_3 = _Conv(c7, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = _Conv(c, c7, 1), _Conv(c7, c7, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = _Conv(c7, c7, (1, 7)), _Conv(c7, c7, (7, 1))
        self.branch7x7dbl_5 = _Conv(c7, 192, (1, 7))
        self.branch_pool = _Conv(c, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))], 1)


class BlockD(nn.Module):
    """(B, C, 17, 17) -> (B, 512 + C, 8, 8)."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(c, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2, valid=True)
        self.branch7x7x3_1, self.branch7x7x3_2 = _Conv(c, 192, 1), _Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2, valid=True)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), functional.max_pool2d(x, 3, 2)], 1)


class BlockE(nn.Module):
    """(B, C, 8, 8) -> (B, 2048, 8, 8); `max_pool` in the last one."""

    def __init__(self, c: int, max_pool: bool) -> None:
        super().__init__()
        self.branch1x1 = _Conv(c, 320, 1)
        self.branch3x3_1 = _Conv(c, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = _Conv(c, 448, 1), _Conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = _Conv(384, 384, (1, 3)), _Conv(384, 384, (3, 1))
        self.branch_pool = _Conv(c, 192, 1)
        self.max_pool = max_pool

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.max_pool else mean_pool(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, 1)


class Inception(nn.Module):
    """uint8 images -> 2048 pooled features -> 1008 logits."""

    preparation = f"{SIZE}x{SIZE}, bilinear without smoothing, scaled to -1..1"

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2, valid=True)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3, valid=True)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3, valid=True)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c = BlockC(768, 128), BlockC(768, 160)
        self.Mixed_6d, self.Mixed_6e = BlockC(768, 160), BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, max_pool=False), BlockE(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 1 or 3, H, W) uint8 -> (B, 2048)."""
        x = functional.interpolate(rgb(samples) / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(2 * x - 1)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        pooled: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """(B, 2048) -> logits (B, 1008), without the bias."""
        return features @ self.fc.weight.T
