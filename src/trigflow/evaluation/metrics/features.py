"""What a Frechet distance looks at: a table of feature extractors, open to files and modules of the user."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from trigflow.evaluation.metrics.classifier_base import ImageClassifier
from trigflow.evaluation.metrics.classifier_net import CARD, WEIGHTS, load_classifier
from trigflow.evaluation.metrics.efficientnet import EfficientNetLite0
from trigflow.evaluation.metrics.published import PUBLISHED
from trigflow.system.config import look_up
from trigflow.system.devices import true_float32
from trigflow.system.errors import UserError, did_you_mean

Extractor = Callable[[Tensor], Tensor]
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Features:
    """Feature vectors of stored samples.

    Attributes:
        name: stated in every report; scores are called FD-<name>.
        extract: stored samples (B, ...) -> (B, D) float.
        classify: feature vectors (B, D) -> logits (B, num_classes); None when the features know no classes.
        data_shape: shape of one sample that they accept, None for any.
        checks_labels: whether the classes are those of the data, so that a sample's top class can be checked.
        is_inception: whether these are the standard Inception features.
        batch: samples at once.
        identity: what happens to a sample on its way (how it is resized and scaled, by which code), so that equal
            identities and equal tensors of `network` mean equal features; "" if that is not known, and then what is
            measured of the real data is not kept for the next time.
        network: the module that `extract` and `classify` run, whose tensors belong to the identity; None for none.
    """

    name: str
    extract: Extractor
    classify: Extractor | None = None
    data_shape: tuple[int, ...] | None = None
    checks_labels: bool = True
    is_inception: bool = False
    batch: int = 1000
    identity: str = ""
    network: nn.Module | None = None

    @property
    def score_name(self) -> str:
        """What a distance in these features is called; "FID" is reserved to the standard Inception features."""
        return "FID" if self.is_inception else f"FD-{self.name}"


def pixels(device: torch.device | str = "cpu") -> Features:
    """The values themselves, flattened; bytes are divided by 255. A plain Gaussian fools this distance."""

    def extract(samples: Tensor) -> Tensor:
        scale = 255.0 if samples.dtype == torch.uint8 else 1.0
        return samples.to(device).flatten(1).float() / scale

    return Features("pixels", extract, identity="pixels: bytes / 255")


def of_classifier(name: str, net: ImageClassifier, device: torch.device | str = "cpu") -> Features:
    """The pooled features of a trained classifier."""

    def extract(samples: Tensor) -> Tensor:
        return net.features(samples.to(device))

    def classify(features: Tensor) -> Tensor:
        return net.head(features.to(device))  # type: ignore[no-any-return]

    identity = f"classifier: {net.to_json()}"
    return Features(name, extract, classify, net.data_shape, identity=identity, network=net)


def shipped_classifier(name: str, words: str) -> Callable[[torch.device | str], Features]:
    """The features of a classifier that comes with the package, as an entry of FEATURES.

    Args:
        name: of the features, and of the folder pretrained/<name>.
        words: how many features they are, and what the classifier knows.
    """

    def features(device: torch.device | str = "cpu") -> Features:
        with resources.as_file(resources.files("trigflow") / "models" / "pretrained" / name) as folder:
            return of_classifier(name, load_classifier(folder, device)[0], device)

    features.__doc__ = f"{words} that comes with the package."
    return features


def efficientnet_lite0(device: torch.device | str = "cpu") -> Features:
    """1280 features of photographs; needs the extra `efficientnet`, which holds the weights."""
    net = _frozen(EfficientNetLite0(), device)

    def classify(features: Tensor) -> Tensor:
        return net.classify(features.to(device))

    return Features(
        "efficientnet-lite0",
        lambda samples: net(samples.to(device)),
        classify,
        checks_labels=False,
        batch=100,
        identity=f"efficientnet-lite0: {net.preparation}",
        network=net,
    )


# Features that need nothing but their name; those of metrics/published.py need a file.
FEATURES: dict[str, Callable[[torch.device | str], Features]] = {
    "pixels": pixels,
    "digits-classifier": shipped_classifier(
        "digits-classifier", "The 64 features of the classifier of scikit-learn's 8x8 digits"
    ),
    "digits-judge": shipped_classifier(
        "digits-judge", "The 96 features of a second, residual classifier of scikit-learn's 8x8 digits"
    ),
    "mnist-classifier": shipped_classifier("mnist-classifier", "The 64 features of the classifier of MNIST"),
    "mnist-judge": shipped_classifier(
        "mnist-judge", "The 96 features of a second, residual classifier of MNIST"
    ),
    "efficientnet-lite0": efficientnet_lite0,
}


def load_features(name: str, device: torch.device | str = "cpu") -> Features:
    """Features by name.

    Args:
        name: one in FEATURES, NAME=FILE with one in PUBLISHED, the path of a classifier (folder or file), or
            "package.module:Class". A class is built without arguments and must be an nn.Module that maps stored samples
            (B, ...) to features (B, D).
        device: where they are computed.

    Raises:
        UserError: nothing goes by that name, or its file is missing, damaged or another one.
    """
    if name in FEATURES:
        return FEATURES[name](device)
    head, has_file, file = name.partition("=")
    if head in PUBLISHED:
        if not has_file:
            raise UserError(f"features '{name}' need a file of weights: {PUBLISHED[name].advice(name)}")
        return _of_published(head, Path(file), device)
    if Path(name).exists():
        folder = Path(name).resolve()
        if folder.is_file():
            if folder.name not in (WEIGHTS, CARD):
                raise UserError(f"features '{name}': give the classifier's folder, or its {WEIGHTS}")
            folder = folder.parent
        return of_classifier(folder.name, load_classifier(folder, device)[0], device)
    if ":" in name:
        return _of_module(name, device)
    known = [*FEATURES, *(f"{known}=FILE" for known in PUBLISHED)]
    hint = did_you_mean(head, [*FEATURES, *PUBLISHED])
    raise UserError(f"unknown features '{name}'{hint}: {', '.join(known)}, a folder, or package.module:Class")


def _frozen(net: Net, device: torch.device | str) -> Net:
    return net.to(device).eval().requires_grad_(False)


def _of_published(name: str, path: Path, device: torch.device | str) -> Features:
    """Features by published weights in a file of the user's."""
    entry = PUBLISHED[name]
    net = _frozen(entry.load(path, entry.advice(name)), device)
    head = getattr(net, "classify", None)
    return Features(
        name,
        lambda samples: net(samples.to(device)),
        None if head is None else lambda features: head(features.to(device)),
        entry.data_shape,
        checks_labels=entry.checks_labels,
        is_inception=entry.is_inception,
        batch=entry.batch,
        identity=f"{name}: {net.preparation}",
        network=net,
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
    module = _frozen(module, device)
    return Features(
        name, lambda samples: module(samples.to(device)), identity=_code_of(module), network=module
    )


def _code_of(module: nn.Module) -> str:
    """The name and the text of a module's class; "" where there is no text (typed into an interpreter)."""
    kind = type(module)
    try:
        return f"{kind.__module__}:{kind.__qualname__}\n{inspect.getsource(kind)}"
    except (OSError, TypeError):
        return ""


@true_float32()
def extract_features(features: Features, samples: Tensor, batch: int | None = None) -> Tensor:
    """Features (N, D) float32 on the CPU of stored samples (N, ...), `batch` at once (default: as the features say).

    Raises:
        UserError: features made for data of another shape, or not (B, D).
    """
    shape = tuple(samples.shape[1:])
    if features.data_shape is not None and shape != features.data_shape:
        raise UserError(
            f"features '{features.name}' are for data {features.data_shape}, not {shape}: use others"
        )
    parts = torch.split(samples, batch or features.batch)
    with torch.inference_mode():
        vectors = [features.extract(part).float().cpu() for part in parts]
    if vectors[0].ndim != 2:
        raise UserError(f"features '{features.name}' have shape {tuple(vectors[0].shape)}, expected (B, D)")
    return torch.cat(vectors)


@true_float32()
def class_logits(features: Features, vectors: Tensor) -> Tensor | None:
    """Logits (N, K) on the CPU of feature vectors (N, D); None for features without classes."""
    if features.classify is None:
        return None
    with torch.inference_mode():
        return torch.cat([features.classify(part).float().cpu() for part in torch.split(vectors, 1000)])
