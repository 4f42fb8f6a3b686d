"""What the samples of a model are compared with: real data of its shape; for a latent model, images."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from trigflow.data import Dataset, check_order, held_out_part, load_data
from trigflow.evaluation.metrics import Features
from trigflow.models.model import Model
from trigflow.system.config import Component, check_trusted, validate
from trigflow.system.errors import UserError

DEFAULT_JUDGES: dict[tuple[str, tuple[int, ...]], tuple[str, ...]] = {
    ("digits", (1, 8, 8)): ("digits-classifier", "digits-judge"),
    ("mnist", (1, 28, 28)): ("mnist-classifier", "mnist-judge"),
}
MOST_PIXELS = 2**14  # numbers of a sample whose covariance can still be taken: a matrix of 2 GiB
_AT_ONCE = 1000  # images that get their noise together
REAL, DECODED = "real samples", "decoded latents"  # what a data set is for a comparison


def trained_on(model: Model, trust_code: bool) -> Component:
    """The data of the model's card; code that only the card names is refused."""
    component = validate(Component, model.card.recipe.get("data", {"name": model.card.data}), "data")
    if not trust_code:
        check_trusted(component.name, "data", model.name)
    return component


def held_out_data(
    model: Model,
    data: Dataset | Component | str | None,
    test_data: Dataset | Component | str | None,
    trust_code: bool,
) -> Dataset | None:
    """The given test data, or the test part of what is named (the model's own); nothing that is not on this disk."""
    if isinstance(test_data, Dataset):
        return _seen_by(model, test_data)
    if test_data is not None:
        return _seen_by(model, load_data(test_data, model.precond.sigma_data))
    source = trained_on(model, trust_code) if data is None else data
    part = None if isinstance(source, Dataset) else held_out_part(source)
    return None if part is None else load_data(part, model.precond.sigma_data)


def real_data_of(model: Model, data: Dataset | Component | str | None, trust_code: bool) -> Dataset:
    """The given data, or the model's own; where that is not here, a user must know how to name it."""
    if data is not None:
        return real_data(model, data)
    own = trained_on(model, trust_code)
    try:
        return real_data(model, own)
    except UserError as error:
        raise UserError(f"{error}; --data names the data that '{model.name}' was trained on") from None


def real_data(model: Model, data: Dataset | Component | str) -> Dataset:
    """Real data of the shape of the model's samples. For a latent model: images, or latents, which are decoded.

    Raises:
        UserError: data of another shape, or with classes in another order.
    """
    dataset = data if isinstance(data, Dataset) else load_data(data, model.precond.sigma_data)
    if dataset.sample_shape != model.sample_shape:
        theirs, ours = dataset.sample_shape, model.sample_shape
        raise UserError(
            f"{dataset.name} has the shape {theirs}, model '{model.name}' {ours}: give its own data"
        )
    if model.num_classes:
        check_order(f"model '{model.name}'", model.card.classes, dataset.classes, dataset.labels_from)
    return _seen_by(model, dataset)


def _seen_by(model: Model, dataset: Dataset) -> Dataset:
    """Latents are decoded where the model computes, by its own autoencoder where that is the same."""
    own, decoder = dataset.decoder, model.decoder
    if own is None:
        return dataset
    same = decoder is not None and decoder.sha256 == own.sha256
    return replace(dataset, decoder=decoder if same else own.on(model.device))


def with_noise(dataset: Dataset, sd: float) -> Dataset:
    """Images with normal noise on each of their numbers, rounded and clipped to pixel values; always the same noise.

    Args:
        dataset: 8-bit images.
        sd: standard deviation in pixel values, of which there are 256.

    Raises:
        UserError: other data.
    """
    if dataset.data.dtype != torch.uint8:
        raise UserError(f"noise levels are in pixel values of images, and {dataset.name} holds none")
    generator = torch.Generator().manual_seed(0)
    noised = torch.empty(dataset.data.shape, dtype=torch.uint8)
    for first in range(0, len(noised), _AT_ONCE):
        images = dataset.data[first : first + _AT_ONCE].cpu()
        noise = sd * torch.randn(images.shape, generator=generator)
        noised[first : first + _AT_ONCE] = (images + noise).round().clamp(0, 255)
    return replace(dataset, name=f"{dataset.name} with noise of {sd:g}", data=noised, mapped=False)


def what_is_real(dataset: Dataset) -> str:
    """REAL, or DECODED for latents."""
    return REAL if dataset.decoder is None else DECODED


def default_judges(dataset: Dataset) -> tuple[str, ...]:
    """The shipped classifiers for the data that they were trained on, pixels for anything else."""
    return DEFAULT_JUDGES.get((dataset.name, dataset.sample_shape), ("pixels",))


def default_features(dataset: Dataset) -> str:
    """The first of them: the main score's."""
    return default_judges(dataset)[0]


def check_features(features: Features, dataset: Dataset) -> None:
    """Whether the covariance of the features can be taken.

    Raises:
        UserError: pixels of large images.
    """
    count = math.prod(dataset.sample_shape)
    if features.name == "pixels" and count > MOST_PIXELS:
        raise UserError(
            f"pixels of shape {dataset.sample_shape} are {count} numbers, too many for a covariance: choose other "
            "--features (`trigflow list features`)"
        )


def reference_notes(model: Model, dataset: Dataset) -> list[str]:
    """For a latent model: what its samples are compared with, and what the autoencoder does to the figures."""
    if model.decoder is None:
        return []
    by = model.decoder.source
    if dataset.decoder is None:
        reference = (
            f"Reference: the real images of {dataset.name}. The samples are decoded by {by}, whose own error is in"
            " every distance; --test-data LATENTS shows it alone."
        )
    else:
        reference = (
            f"Reference: decoded latents, not real images. The latents of {dataset.name} and the samples are decoded"
            f" alike by {by}, so that its own error is in no distance, and these are no scores against real images;"
            " --data IMAGES takes those."
        )
    return [
        reference,
        "Times are of whole calls, decoding included; NFE, ESC and parameters leave the decoder out.",
    ]
