"""The measurements of an evaluation: Frechet distance and label agreement, evaluations, seconds a sample."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.core.samplers import CountNFE
from trigflow.data import Dataset, labels_like
from trigflow.evaluation.cached_scores import Numbers, cached_scores, score_key
from trigflow.evaluation.metrics.diversity import classifier_score
from trigflow.evaluation.metrics.features import Features, class_logits, extract_features, share_of_labels
from trigflow.evaluation.metrics.frechet import Moments, frechet_distance_of_moments, moments
from trigflow.evaluation.metrics.kernel import kernel_distance
from trigflow.evaluation.metrics.neighbours import NEIGHBOURS, PrecisionRecall, precision_recall
from trigflow.evaluation.metrics.sliced_wasserstein import sliced_wasserstein
from trigflow.evaluation.reference import MOST_NEIGHBOURS, data_digest, reference, reference_key
from trigflow.models.model import Model
from trigflow.system.devices import generator_seed
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.timing import time_in_turn

SPLITS = 5
TIMING_BATCH, TIMING_REPEATS = 64, 5


@dataclass(frozen=True)
class Trial:
    """What samples are compared with, and how many there are.

    Attributes:
        dataset, features: the real data, and what is looked at.
        real: moments of all real features.
        real_features: some of them, MOST_NEIGHBOURS at most, for what looks at pairs.
        real_radii: of their balls for precision and recall, (n,).
        halves: FD between two random halves of the real data, for several splits.
        num: samples of each seed.
        seeds: repetitions, seeds 0 .. seeds - 1.
        batch: samples computed at once.
        real_diversity: `classifier_score` of all real data; None for features without classes.
        real_agreement: share of the real data to which the features give its own label; None where they cannot tell.
    """

    dataset: Dataset
    features: Features
    real: Moments
    real_features: Tensor
    real_radii: Tensor
    halves: list[float]
    num: int
    seeds: int
    batch: int
    real_diversity: float | None = None
    real_agreement: float | None = None

    @property
    def score_name(self) -> str:
        """What the distance is called: a distance to decoded latents is not one to real images."""
        decoded = " to decoded latents" if self.dataset.decoder is not None else ""
        return self.features.score_name + decoded


def new_trial(
    dataset: Dataset, features: Features, num: int, seeds: int, batch: int, progress: bool = False
) -> Trial:
    """A trial against all of the data, whose side of it comes from the cache if it was measured before.

    Raises:
        UserError: features for data of another shape, or fewer than four real samples.
    """
    real = reference(dataset, features, SPLITS, progress)
    sides = (real.moments, real.some, real.radii, real.halves)
    return Trial(dataset, features, *sides, num, seeds, batch, real.diversity, real.agreement)


def samples_alone(dataset: Dataset, features: Features, num: int, seeds: int, batch: int) -> Trial:
    """The trial of a process that draws samples and compares nothing: without what is measured of the real data."""
    nothing = torch.empty(0)
    return Trial(dataset, features, Moments(nothing, nothing, 0), nothing, nothing, [], num, seeds, batch)


@dataclass(frozen=True)
class Scores:
    """One number for each seed.

    Attributes:
        fds: Frechet distances.
        kernels: kernel distances.
        neighbours: precisions and recalls; empty where there are too few samples or data.
        diversities: classifier scores; empty where the features know no classes.
        agreements: shares of samples that the classifier gives their label; empty where there are no classes.
        sliced: sliced Wasserstein distances of points (D,) to as many of the data; empty for images.
        nfes: evaluations of the network for a sample, counted while they were drawn; empty for real data.
    """

    fds: list[float] = field(default_factory=list)
    kernels: list[float] = field(default_factory=list)
    neighbours: list[PrecisionRecall] = field(default_factory=list)
    diversities: list[float] = field(default_factory=list)
    agreements: list[float] = field(default_factory=list)
    sliced: list[float] = field(default_factory=list)
    nfes: list[int] = field(default_factory=list)

    @property
    def nfe(self) -> int:
        """Of a sample, the same for all seeds."""
        return self.nfes[0]

    def add(self, numbers: Numbers) -> None:
        """The scores of one more seed."""
        self.fds.append(numbers["fd"])
        self.kernels.append(numbers["kernel"])
        if "precision" in numbers:
            self.neighbours.append(PrecisionRecall(numbers["precision"], numbers["recall"]))
        for name, values in (
            ("diversity", self.diversities),
            ("agreement", self.agreements),
            ("sliced", self.sliced),
        ):
            values.extend([numbers[name]] if name in numbers else [])
        self.nfes.extend([int(numbers["nfe"])] if "nfe" in numbers else [])


def must_be_held_out(held_out: Dataset, dataset: Dataset) -> None:
    """Of test data.

    Raises:
        UserError: data of another shape, or the same data.
    """
    if held_out.sample_shape != dataset.sample_shape:
        raise UserError(
            f"the test data {held_out.name} has the shape {held_out.sample_shape}, {dataset.name} "
            f"{dataset.sample_shape}: give data of one kind"
        )
    if data_digest(held_out) == data_digest(dataset):
        raise UserError(f"the test data is {dataset.name} itself: give data that is held out")


def score_held_out(trial: Trial, held_out: Dataset, progress: bool = False) -> Scores:
    """Real data that is no part of the trial's, all of it, in the place of samples: what a perfect model would get.

    Raises:
        UserError: fewer than four samples.
    """
    found = reference(held_out, trial.features, splits=0, progress=progress)
    numbers = {"fd": frechet_distance_of_moments(trial.real, found.moments)} | _compare_pairs(
        trial, found.some
    )
    known = {"diversity": found.diversity, "agreement": found.agreement}
    scores = Scores()
    scores.add(numbers | {name: value for name, value in known.items() if value is not None})
    return scores


def score_all(
    trial: Trial,
    models: Sequence[Model],
    progress: bool = True,
    folder: Path | None = None,
    world: World = SINGLE_PROCESS,
) -> list[Scores]:
    """Scores of each model over all seeds; the bar counts the steps of all samples.

    Args:
        trial: what they are compared with.
        models: each is sampled by its `default_plan`.
        progress: draw the bar.
        folder: exists; keeps the scores of every seed, and those that it has are not measured again.
        world: processes that all draw samples; the first scores them, those of the others are nothing.
    """
    total = sum(model.default_plan.steps for model in models) * trial.num * trial.seeds
    trial_key = (
        reference_key(trial.dataset, trial.features, SPLITS) if folder and trial.features.identity else ""
    )
    with tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress) as bar:
        return [_score(trial, model, bar, folder, trial_key, world) for model in models]


def _score(
    trial: Trial, model: Model, bar: tqdm[Any], folder: Path | None, trial_key: str, world: World
) -> Scores:
    bar.set_description(f"{model.name}, {model.default_plan.sampler}, steps {model.default_plan.steps}")
    key = score_key(trial_key, model, trial.num) if folder else None
    scores = Scores()
    for seed in range(trial.seeds):
        measure = partial(_score_seed, trial, model, seed, bar, world)
        numbers, was_kept = cached_scores(folder, key, seed, measure, world)
        if world.is_main:
            scores.add(numbers)
        bar.update(model.default_plan.steps * trial.num if was_kept else 0)
    return scores


def _score_seed(trial: Trial, model: Model, seed: int, bar: tqdm[Any], world: World) -> Numbers:
    labels = draw_labels(trial, model, seed)
    counter = model.counter()
    features, samples = _generate(trial, model, seed, labels, bar, world, counter)
    numbers: Numbers = {}
    with world.together():
        if world.is_main:
            numbers = _numbers(trial, features, samples, labels, seed) | {"nfe": float(counter.nfe)}
    return numbers


def _numbers(
    trial: Trial, features: Tensor, samples: Tensor | None, labels: Tensor | None, seed: int
) -> Numbers:
    numbers = {"fd": frechet_distance_of_moments(trial.real, moments(features))}
    numbers |= _compare_pairs(trial, features[:MOST_NEIGHBOURS])
    logits = class_logits(trial.features, features)
    if logits is not None:
        numbers["diversity"] = classifier_score(logits)
        if labels is not None and trial.features.checks_labels:
            numbers["agreement"] = share_of_labels(logits, labels)
    if samples is not None:
        numbers["sliced"] = _sliced_to_data(trial, samples, seed)
    return numbers


def _compare_pairs(trial: Trial, few: Tensor) -> Numbers:
    """What looks at pairs of feature vectors; `few` (n, D) are MOST_NEIGHBOURS at most."""
    numbers = {"kernel": kernel_distance(trial.real_features, few)}
    if min(len(trial.real_features), len(few)) > NEIGHBOURS:
        found = precision_recall(trial.real_features, few, real_radii=trial.real_radii)
        numbers |= {"precision": found.precision, "recall": found.recall}
    return numbers


def _generate(
    trial: Trial,
    model: Model,
    seed: int,
    labels: Tensor | None,
    bar: tqdm[Any],
    world: World,
    counter: CountNFE,
) -> tuple[Tensor, Tensor | None]:
    """The features (num, D) of one seed's samples, and the samples where they are vectors; both on the CPU.

    Each process looks at the samples that it draws, where they are: images never leave the device.
    """
    samples: list[Tensor] = []
    features: list[Tensor] = []
    left = trial.num
    for part in model.sample_batches(
        trial.num, labels=labels, seed=seed, batch=trial.batch, world=world, counter=counter, on_device=True
    ):
        features.append(world.joined(extract_features(trial.features, part))[:left])
        if len(trial.dataset.data_shape) == 1:
            samples.append(world.joined(part)[:left])
        left -= len(features[-1])
        bar.update(model.default_plan.steps * len(features[-1]))
    return torch.cat(features), torch.cat(samples) if samples else None


def _sliced_to_data(trial: Trial, samples: Tensor, seed: int) -> float:
    """To as many points of the data as there are samples (the samples are cut to the data, where it has fewer)."""
    order = torch.randperm(
        len(trial.dataset.data), generator=torch.Generator().manual_seed(generator_seed(seed))
    )
    real = trial.dataset.data[order[: len(samples)]]
    return sliced_wasserstein(samples[: len(real)], real, seed=seed)


def draw_labels(trial: Trial, model: Model, seed: int) -> Tensor | None:
    """(num,) labels drawn from the data's own; all classes in turn for data without; None for a model without."""
    if model.num_classes == 0 or trial.dataset.labels is None:
        return model.labels(trial.num)
    return labels_like(trial.dataset, trial.num, seed)


def seconds_per_sample(models: Sequence[Model], batch: int = TIMING_BATCH) -> list[float]:
    """Median seconds a sample of each model, in calls of `batch` samples; of one sample: its latency.

    A whole sampling call is timed, noise and decoding included; after one call of each to warm up, TIMING_REPEATS
    rounds call them in turn, so that a busy moment of the machine meets all of them.

    Args:
        models: to time, each sampled by its `default_plan`.
        batch: samples of a call, >= 1.

    Raises:
        UserError: batch < 1.
    """
    if batch < 1:
        raise UserError(f"batch is {batch}: give 1 or more")
    calls = {number: partial(draw, model, batch) for number, model in enumerate(models)}
    return [statistics.median(taken) / batch for taken in time_in_turn(calls, TIMING_REPEATS).values()]


def draw(model: Model, batch: int, seed: int) -> None:
    """A whole sampling call, to be timed; its samples end on the CPU."""
    for _ in model.sample_batches(batch, seed=seed, batch=batch):
        pass
