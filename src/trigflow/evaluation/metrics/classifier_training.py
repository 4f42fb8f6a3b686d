"""Training of the small classifier whose features the scores use."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from trigflow.data import Dataset
from trigflow.evaluation.metrics.classifier_base import ImageClassifier
from trigflow.evaluation.metrics.classifier_net import CARD, CLASSIFIERS, DEFAULT_CLASSIFIER, WEIGHTS
from trigflow.system.devices import seed_generators, true_float32
from trigflow.system.errors import UserError, one_of
from trigflow.system.files import is_occupied, make_folder, write_atomically, write_json

HELD_OUT = 0.2
BATCH = 64
LEARNING_RATE = 4e-3
MOST_ANGLE, MOST_GROWTH, MOST_SHIFT = math.radians(10), 0.1, 1 / 14  # the last two are shares of the size

Moves = Callable[[int], Tensor]  # number of images N -> (4, N): angles, growths, shifts in halves of a side


@true_float32()
def train_classifier(
    dataset: Dataset,
    out_folder: Path,
    seed: int = 0,
    epochs: int = 40,
    device: torch.device | str = "cpu",
    progress: bool = True,
    network: str = DEFAULT_CLASSIFIER,
    augment: str = "normal",
) -> float:
    """Trains on a random 80 % of labelled images, measures on the other 20 %, writes weights and card.

    The weights written are those that were measured: they have never seen the held-out images, and no choice was made
    on these either (the last epoch is taken).

    Args:
        dataset: labelled uint8 images.
        out_folder: gets classifier.safetensors and classifier.json.
        seed: of the split, the initial weights, the batches and their augmentation.
        epochs: passes over the 80 %.
        network: one of CLASSIFIERS.
        augment: one of AUGMENTATIONS: how the images of a batch are moved.

    Returns:
        Accuracy in [0, 1] on the held-out images.

    Raises:
        UserError: vectors or unlabelled data, too few images, epochs < 1, an unknown network or augmentation, a folder
            that is in use.
    """
    _check(dataset, epochs)
    kind = CLASSIFIERS[one_of("network", network, CLASSIFIERS)]
    moves = AUGMENTATIONS[one_of("augmentation", augment, AUGMENTATIONS)]
    _new_folder(out_folder)  # before the work, not after it
    labels = torch.as_tensor(dataset.labels)
    with torch.random.fork_rng(devices=[]):
        seed_generators(seed, torch.device("cpu"))  # which draws all: the classifier has no dropout
        held_out, kept = torch.randperm(len(labels)).tensor_split([round(HELD_OUT * len(labels))])
        net = _new_classifier(kind, dataset, kept).to(device)
        _fit(net, dataset.data[kept].to(device), labels[kept].to(device), epochs, moves, progress)
    accuracy = _accuracy(net.eval(), dataset.data[held_out].to(device), labels[held_out].to(device))
    training = {"data": dataset.name, "seed": seed, "epochs": epochs, "num_train": len(kept)}
    training |= {"augment": augment}
    score = {"held_out_accuracy": round(accuracy, 5), "num_held_out": len(held_out)}
    about = {"architecture": network, "network": net.to_json(), "training": training, "score": score}
    _write(out_folder, net, about)
    return accuracy


def _new_folder(folder: Path) -> None:
    if is_occupied(folder):
        what = "holds a classifier already" if (folder / CARD).exists() else "is not empty"
        raise UserError(f"{folder} {what}: choose another --out")
    make_folder(folder)


def _check(dataset: Dataset, epochs: int) -> None:
    if epochs < 1:
        raise UserError(f"epochs must be at least 1, got {epochs}")
    if dataset.data.dtype != torch.uint8 or dataset.data.ndim != 4 or min(dataset.data.shape[2:]) < 4:
        raise UserError(
            f"{dataset.name}: a classifier needs images of 4x4 pixels or more: use pixels as features"
        )
    if dataset.labels is None or dataset.num_classes < 2:
        raise UserError(f"{dataset.name}: a classifier needs labelled images of two classes or more")
    if len(dataset.data) < 2 * BATCH:
        raise UserError(
            f"{dataset.name}: {len(dataset.data)} images are too few for a classifier ({2 * BATCH})"
        )


def _new_classifier(kind: type[ImageClassifier], dataset: Dataset, rows: Tensor) -> ImageClassifier:
    pixels = dataset.data[rows].double()
    channels, height, width = dataset.data.shape[1:]
    mean, std = round(float(pixels.mean()), 3), round(float(pixels.std()), 3)
    return kind((channels, height, width), dataset.num_classes, mean=mean, std=std)


def _fit(
    net: ImageClassifier, images: Tensor, labels: Tensor, epochs: int, moves: Moves, progress: bool
) -> None:
    """AdamW with one cycle of the learning rate."""
    batches = len(images) // BATCH
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=epochs * batches)
    for _ in tqdm(range(epochs), desc="classifier", unit="epoch", disable=not progress):
        for rows in _batches(len(images), batches):
            loss = F.cross_entropy(net(_moved(images[rows], moves)), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


def _batches(num: int, batches: int) -> Iterator[Tensor]:
    order = torch.randperm(num)
    return (order[i * BATCH : (i + 1) * BATCH] for i in range(batches))


def _normal(count: int) -> Tensor:
    return torch.randn(4, count).mul(torch.tensor([0.1, 0.06, 0.05, 0.05])[:, None])


def _uniform(count: int) -> Tensor:
    most = torch.tensor([MOST_ANGLE, MOST_GROWTH, 2 * MOST_SHIFT, 2 * MOST_SHIFT])
    return (2 * torch.rand(4, count) - 1).mul(most[:, None])


# How images are moved, of which none is mirrored: "normal", a rotation (sd 6 degrees), a size (sd 6 %) and shifts
# (sd 5 % of the half width); "uniform", up to 10 degrees, 10 % and a 14th of a
# side (two pixels of MNIST's), each as likely.
AUGMENTATIONS: dict[str, Moves] = {"normal": _normal, "uniform": _uniform}


def _moved(images: Tensor, moves: Moves) -> Tensor:
    """A random rotation, size and shift of each image."""
    angle, size, shift_x, shift_y = moves(len(images))
    cos, sin = (1 + size) * torch.cos(angle), (1 + size) * torch.sin(angle)
    rows = torch.stack([cos, -sin, shift_x, sin, cos, shift_y], 1).view(-1, 2, 3).to(images.device)
    grid = F.affine_grid(rows, list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False, padding_mode="border")


def _accuracy(net: ImageClassifier, images: Tensor, labels: Tensor) -> float:
    with torch.inference_mode():
        top = torch.cat([net(batch).argmax(1) for batch in torch.split(images, 1000)])
    return float((top == labels).double().mean())


def _write(folder: Path, net: ImageClassifier, card: dict[str, Any]) -> None:
    """The card last: where it lies, the weights do, too; it has the digest of their file."""
    weights = save({name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()})
    write_atomically(folder / WEIGHTS, weights)
    write_json(folder / CARD, card | {"sha256": hashlib.sha256(weights).hexdigest()})
