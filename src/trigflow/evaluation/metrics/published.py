"""Networks whose weights others have published: the user brings the file, nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from trigflow.evaluation.metrics.dinov2 import BASE, GIANT, LARGE, SMALL, Size, load_dinov2
from trigflow.evaluation.metrics.inception import Inception
from trigflow.evaluation.metrics.resnet_cifar import CifarResNet
from trigflow.evaluation.metrics.weights import filled


@dataclass(frozen=True)
class Published:
    """One of them.

    Args:
        load: (path, the right file in words) -> the network: uint8 images (B, C, H, W) -> features (B, D), and, if it
            knows classes, `classify`: features -> logits.
        summary: what the features are.
        file, address: the file's name, and where it is published.
        data_shape: of one sample, None for images of any size.
        checks_labels, is_inception, batch: as in Features.
    """

    load: Callable[[Path, str], nn.Module]
    summary: str
    file: str
    address: str
    data_shape: tuple[int, ...] | None = None
    checks_labels: bool = False
    is_inception: bool = False
    batch: int = 50

    def advice(self, name: str) -> str:
        """Which file, whence, and how it is named."""
        return f"{self.file} from {self.address}, as {name}=FILE"


def _resnet(depth: int, file: str) -> Published:
    return Published(
        partial(filled, partial(CifarResNet, depth)),
        f"64 features of a ResNet-{depth} that knows CIFAR-10",
        file,
        "https://github.com/akamaster/pytorch_resnet_cifar10",
        data_shape=(3, 32, 32),
        checks_labels=True,
        batch=500,
    )


def _dinov2(size: Size, letter: str) -> Published:
    return Published(
        partial(load_dinov2, size=size),
        f"{size.width} features of DINOv2, ViT-{letter.upper()}/14",
        f"dinov2_vit{letter}14_pretrain.pth",
        "https://github.com/facebookresearch/dinov2",
    )


PUBLISHED: dict[str, Published] = {
    "resnet20": _resnet(20, "resnet20-12fca82f.th"),
    "resnet56": _resnet(56, "resnet56-4bfd9763.th"),
    "inception": Published(
        partial(filled, Inception),
        "2048 features of the standard Inception-v3: the FID",
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases",
        is_inception=True,
    ),
    "dinov2-vits14": _dinov2(SMALL, "s"),
    "dinov2-vitb14": _dinov2(BASE, "b"),
    "dinov2-vitl14": _dinov2(LARGE, "l"),
    "dinov2-vitg14": _dinov2(GIANT, "g"),
}
