"""A small convolutional classifier: its pooled features measure images, its top class checks their labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from trigflow.system.config import Component, build
from trigflow.system.errors import UserError
from trigflow.system.files import read_json, sha256_of

Count = Annotated[int, Field(ge=1, le=2**20)]
Level = Annotated[float, Field(ge=0, le=255)]  # of grey
WEIGHTS, CARD = "classifier.safetensors", "classifier.json"


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.SiLU(),
    )


class Classifier(nn.Module):
    """uint8 images -> 64 pooled features -> class logits.

    Args:
        data_shape: (C, H, W) of the images, H and W at least 4.
        num_classes: number of classes.
        width: channels of the first layer; twice that are the features.
        mean, std: of the pixel values in 0..255, for standardising.
    """

    def __init__(
        self,
        data_shape: tuple[Count, Count, Count],
        num_classes: Count,
        width: Count = 32,
        mean: Level = 127.5,
        std: Annotated[Level, Field(gt=0)] = 127.5,
    ) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.width = tuple(data_shape), num_classes, width
        self.pixel_mean, self.pixel_std = mean, std
        self.body = nn.Sequential(
            _block(data_shape[0], width),
            _block(width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 (or float in 0..255) -> (B, 2 * width), averages over the last feature map."""
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
            "width": self.width,
            "mean": self.pixel_mean,
            "std": self.pixel_std,
        }


def load_classifier(folder: Path, device: torch.device | str = "cpu") -> tuple[Classifier, dict[str, Any]]:
    """The classifier in a folder that `train_classifier` wrote, in evaluation mode, and its card.

    Raises:
        UserError: no classifier there, or a damaged one.
    """
    if not (folder / CARD).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: no classifier here ({CARD} and {WEIGHTS}): train one with train-classifier"
        )
    card = read_json(folder / CARD)
    network = card.get("network") if isinstance(card, dict) else None
    if not isinstance(network, dict):
        raise UserError(f"{folder / CARD} is damaged (it holds no 'network'): train the classifier again")
    with torch.random.fork_rng(devices=[]):  # its first weights are replaced: the caller's generator stays
        net: Classifier = build(
            Component("classifier", network), {"classifier": Classifier}, f"{folder / CARD}: network"
        )
    if card.get("sha256", digest := sha256_of(folder / WEIGHTS)) != digest:
        raise UserError(
            f"{folder / WEIGHTS} is damaged (its digest is not that in {CARD}): train the classifier again"
        )
    try:
        net.load_state_dict(load_file(folder / WEIGHTS))
    except (RuntimeError, ValueError, OSError, SafetensorError) as error:
        cause = str(error).splitlines()[0]
        raise UserError(f"{folder}: damaged classifier ({cause}): train it again") from error
    return net.to(device).eval().requires_grad_(False), card
