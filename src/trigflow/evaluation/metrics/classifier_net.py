"""Small classifiers: their pooled features measure images, their top class checks labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from trigflow.evaluation.metrics.classifier_base import Count, ImageClassifier, Level, Spread
from trigflow.evaluation.metrics.classifier_residual import ResidualClassifier
from trigflow.system.config import Component, build
from trigflow.system.errors import UserError, one_of
from trigflow.system.files import read_json, sha256_of

WEIGHTS, CARD = "classifier.safetensors", "classifier.json"


def _block(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.SiLU(),
    )


class Classifier(ImageClassifier):
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
        std: Spread = 127.5,
    ) -> None:
        super().__init__(data_shape, num_classes, mean, std, width=width)
        self.body = nn.Sequential(
            _block(data_shape[0], width),
            _block(width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
            nn.MaxPool2d(2),
            _block(2 * width, 2 * width),
        )
        self.head = nn.Linear(2 * width, num_classes)


# Each maps uint8 images to features and logits; all have the arguments of ImageClassifier.
CLASSIFIERS: dict[str, type[ImageClassifier]] = {"convolutions": Classifier, "residual": ResidualClassifier}
DEFAULT_CLASSIFIER = "convolutions"  # what a card without a name has


def load_classifier(
    folder: Path, device: torch.device | str = "cpu"
) -> tuple[ImageClassifier, dict[str, Any]]:
    """The classifier in a folder that `train_classifier` wrote, in evaluation mode, and its card.

    Raises:
        UserError: no classifier there, a damaged one, or one of an unknown network.
    """
    if not (folder / CARD).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: no classifier here ({CARD} and {WEIGHTS}): train one with train-classifier"
        )
    card = read_json(folder / CARD)
    network = card.get("network") if isinstance(card, dict) else None
    if not isinstance(network, dict):
        raise UserError(f"{folder / CARD} is damaged (it holds no 'network'): train the classifier again")
    name = str(card.get("architecture", DEFAULT_CLASSIFIER))
    one_of("architecture", name, CLASSIFIERS, f"{folder / CARD}: ")
    with torch.random.fork_rng(devices=[]):  # its first weights are replaced: the caller's generator stays
        net: ImageClassifier = build(Component(name, network), CLASSIFIERS, f"{folder / CARD}: network")
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
