"""A classifier of another kind: strides in place of pooling, residual blocks, more features."""

from __future__ import annotations

from torch import Tensor, nn

from trigflow.evaluation.metrics.classifier_base import Count, ImageClassifier, Level, Spread

SMALL = 16  # pixels of a side


class _Block(nn.Module):
    """x + a function of x that begins with a normalisation (He et al., 2016, arXiv 1603.05027)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            *_before(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            *_before(width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = x + self.change(x)
        return changed


def _before(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm2d(width), nn.ReLU()


class ResidualClassifier(ImageClassifier):
    """uint8 images -> 96 pooled features -> class logits, by residual blocks at a half and a quarter of the size.

    Images of less than 16 pixels keep their size in the first blocks, and have a half of it in the others.

    Args:
        data_shape: (C, H, W) of the images, H and W at least 4.
        num_classes: number of classes.
        width: channels of the first layers; three times that are the features.
        depth: blocks at each size.
        mean, std: of the pixel values in 0..255, for standardising.
    """

    def __init__(
        self,
        data_shape: tuple[Count, Count, Count],
        num_classes: Count,
        width: Count = 32,
        depth: Count = 1,
        mean: Level = 127.5,
        std: Spread = 127.5,
    ) -> None:
        super().__init__(data_shape, num_classes, mean, std, width=width, depth=depth)
        first = 2 if min(data_shape[1:]) >= SMALL else 1
        self.body = nn.Sequential(
            nn.Conv2d(data_shape[0], width, 5, stride=first, padding=2, bias=False),
            *(_Block(width) for _ in range(depth)),
            *_before(width),
            nn.Conv2d(width, 3 * width, 3, stride=2, padding=1, bias=False),
            *(_Block(3 * width) for _ in range(depth)),
            *_before(3 * width),
        )
        self.head = nn.Linear(3 * width, num_classes)
