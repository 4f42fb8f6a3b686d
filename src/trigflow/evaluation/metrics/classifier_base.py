"""What the small classifiers have in common: standardised pixels, features that are averages over places, a head."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

Count = Annotated[int, Field(ge=1, le=2**20)]
Level = Annotated[float, Field(ge=0, le=255)]  # of grey
Spread = Annotated[Level, Field(gt=0)]


class ImageClassifier(nn.Module):
    """uint8 images -> pooled features -> class logits; a subclass adds `body` and then `head`.

    Args:
        data_shape: (C, H, W) of the images, H and W at least 4.
        num_classes: number of classes.
        mean, std: of the pixel values in 0..255, for standardising.
        options: the subclass's own arguments, for the card.
    """

    body: nn.Module
    head: nn.Linear

    def __init__(
        self, data_shape: tuple[int, int, int], num_classes: int, mean: float, std: float, **options: int
    ) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.options = tuple(data_shape), num_classes, options
        self.pixel_mean, self.pixel_std = mean, std

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 (or float in 0..255) -> (B, D), averages over the last feature map."""
        pooled: Tensor = self.body((images.float() - self.pixel_mean) / self.pixel_std).mean((2, 3))
        return pooled

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 (or float in 0..255) -> logits (B, num_classes)."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def to_json(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "data_shape": list(self.data_shape),
            "num_classes": self.num_classes,
            **self.options,
            "mean": self.pixel_mean,
            "std": self.pixel_std,
        }
