"""What a Frechet distance looks at: a table of feature extractors, open to files and modules of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from trigflow.config import look_up
from trigflow.errors import UserError, did_you_mean
from trigflow.metrics.classifier_net import CARD, WEIGHTS, Classifier, load_classifier

Extractor = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """Feature vectors of stored samples.

    Attributes:
        name: stated in every report; scores are called FD-<name>.
        extract: stored samples (B, ...) -> (B, D) float.
        classify: stored samples (B, ...) -> logits (B, num_classes); None when the features know no classes.
        data_shape: shape of one sample that they accept, None for any.
    """

    name: str
    extract: Extractor
    classify: Extractor | None = None
    data_shape: tuple[int, ...] | None = None

    @property
    def score_name(self) -> str:
        """What a distance in these features is called; "FID" is reserved to the standard Inception features."""
        return f"FD-{self.name}"


def pixels(device: torch.device | str = "cpu") -> Features:
    """The values themselves, flattened; bytes are divided by 255. A plain Gaussian fools this distance."""

    def extract(samples: Tensor) -> Tensor:
        scale = 255.0 if samples.dtype == torch.uint8 else 1.0
        return samples.to(device).flatten(1).float() / scale

    return Features("pixels", extract)


def of_classifier(name: str, net: Classifier, device: torch.device | str = "cpu") -> Features:
    """The pooled features of a trained classifier."""

    def extract(samples: Tensor) -> Tensor:
        return net.features(samples.to(device))

    def classify(samples: Tensor) -> Tensor:
        return net(samples.to(device))  # type: ignore[no-any-return]

    return Features(name, extract, classify, net.data_shape)


def digits_classifier(device: torch.device | str = "cpu") -> Features:
    """The 64 features of the classifier of scikit-learn's 8x8 digits that comes with the package."""
    with resources.as_file(resources.files("trigflow") / "pretrained" / "digits-classifier") as folder:
        return of_classifier("digits-classifier", load_classifier(folder, device)[0], device)


FEATURES: dict[str, Callable[[torch.device | str], Features]] = {
    "pixels": pixels,
    "digits-classifier": digits_classifier,
}


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """Features by the name in FEATURES, the path of a classifier (folder or file), or "package.module:Class".

    A class is built without arguments and must be an nn.Module that maps stored samples (B, ...) to features (B, D).

    Raises:
        UserError: nothing goes by that name.
    """
    if name in FEATURES:
        return FEATURES[name](device)
    if Path(name).exists():
        folder = Path(name).resolve()
        if folder.is_file():
            if folder.name not in (WEIGHTS, CARD):
                raise UserError(f"features '{name}': give the classifier's folder, or its {WEIGHTS}")
            folder = folder.parent
        return of_classifier(folder.name, load_classifier(folder, device)[0], device)
    if ":" in name:
        return _of_module(name, device)
    hint = did_you_mean(name, FEATURES)
    raise UserError(
        f"unknown features '{name}'{hint}: {', '.join(FEATURES)}, a folder, or package.module:Class"
    )


def _of_module(name: str, device: torch.device | str) -> Features:
    """Features by a module of the user's, built without arguments."""
    try:
        module = look_up(name, FEATURES, "features")()
    except TypeError as error:
        raise UserError(f"features '{name}': cannot build it without arguments ({error})") from None
    if not isinstance(module, nn.Module):
        raise UserError(
            f"features '{name}': not a torch.nn.Module, write a class with forward(samples) -> (B, D)"
        )
    module = module.to(device).eval().requires_grad_(False)
    return Features(name, lambda samples: module(samples.to(device)))


def extract_features(features: Features, samples: Tensor, batch: int = 1000) -> Tensor:
    """Features (N, D) float32 on the CPU of stored samples (N, ...).

    Raises:
        UserError: features made for data of another shape, or not (B, D).
    """
    shape = tuple(samples.shape[1:])
    if features.data_shape is not None and shape != features.data_shape:
        raise UserError(
            f"features '{features.name}' are for data {features.data_shape}, not {shape}: use others"
        )
    with torch.inference_mode():
        parts = [features.extract(part).float().cpu() for part in torch.split(samples, batch)]
    if parts[0].ndim != 2:
        raise UserError(f"features '{features.name}' have shape {tuple(parts[0].shape)}, expected (B, D)")
    return torch.cat(parts)


def label_agreement(features: Features, samples: Tensor, labels: Tensor, batch: int = 1000) -> float | None:
    """Share in [0, 1] of samples whose top class is the requested label; None for features without classes."""
    if features.classify is None:
        return None
    with torch.inference_mode():
        top = torch.cat([features.classify(part).argmax(1).cpu() for part in torch.split(samples, batch)])
    return float((top == labels.cpu()).double().mean())
