"""ResNet-20 and ResNet-56 for CIFAR-10: small features of small photographs, and a judge of their classes.

He et al., "Deep residual learning for image recognition", 2015, arXiv 1512.03385, section 4.2, with shortcuts without
parameters (option A). The weights are those of akamaster/pytorch_resnet_cifar10, whose names the layers have:
conv1, bn1, layerL.N.conv1, .bn1, .conv2, .bn2 (L = 1..3, N = 0..n-1), linear. Input: 32x32 RGB, no resize, ImageNet's
mean and standard deviation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trigflow.evaluation.metrics.images import imagenet_standard, rgb


class _Block(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, channels, H / stride, W / stride)."""
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Option A: every second pixel, and as many channels of zeros below as above."""
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))


class CifarResNet(nn.Module):
    """uint8 images -> 64 pooled features -> 10 logits.

    Args:
        depth: 6 n + 2, for n blocks in each of three stages of 16, 32 and 64 channels.
    """

    preparation = "as they are, ImageNet's mean and std"

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, count, 1)
        self.layer2 = self._stage(16, 32, count, 2)
        self.layer3 = self._stage(32, 64, count, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(channels_in: int, channels: int, count: int, stride: int) -> nn.Sequential:
        first = _Block(channels_in, channels, stride)
        return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(count - 1)))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, 3, 32, 32) uint8 -> (B, 64), averages over the last feature map."""
        x = torch.relu(self.bn1(self.conv1(imagenet_standard(rgb(samples)))))
        pooled: Tensor = self.layer3(self.layer2(self.layer1(x))).mean((2, 3))
        return pooled

    def classify(self, features: Tensor) -> Tensor:
        """(B, 64) -> logits (B, 10) of CIFAR-10's classes in their usual order."""
        logits: Tensor = self.linear(features)
        return logits
