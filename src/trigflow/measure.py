"""The measurements of an evaluation: Frechet distance and label agreement, evaluations, seconds a sample."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.data import Dataset, labels_like
from trigflow.errors import UserError
from trigflow.metrics.features import Features, extract_features, label_agreement
from trigflow.metrics.flow_map import sliced_wasserstein
from trigflow.metrics.frechet import Moments, frechet_distance_of_moments, halves_distance, moments
from trigflow.metrics.kernel import kernel_distance
from trigflow.metrics.neighbours import NEIGHBOURS, PrecisionRecall, precision_recall
from trigflow.model import Model, Plan

SPLITS = 5
TIMING_BATCH, TIMING_REPEATS = 64, 5
MOST_NEIGHBOURS = 10_000  # features on each side of a metric whose cost grows with their square


@dataclass(frozen=True)
class Contender:
    """A model with one way to sample it.

    Attributes:
        model, plan: what is sampled, and how.
        nfe: evaluations of the network for a sample, counted.
    """

    model: Model
    plan: Plan
    nfe: int

    @property
    def esc(self) -> float:
        """Effective sampling compute: billions of parameters x evaluations a sample (arXiv 2410.11081, figure 1)."""
        return self.model.num_parameters / 1e9 * self.nfe


def contender(model: Model, steps: int | None, guidance_scale: float | None) -> Contender:
    """A model sampled in so many steps; what is None is as its card says."""
    plan = model.plan(steps, guidance_scale)
    return Contender(model, plan, model.count_nfe(plan))


@dataclass(frozen=True)
class Trial:
    """What samples are compared with, and how many there are.

    Attributes:
        dataset, features: the real data, and what is looked at.
        real: moments of all real features.
        real_features: some of them, MOST_NEIGHBOURS at most, for what looks at pairs.
        halves: FD between two random halves of the real data, for several splits.
        num: samples of each seed.
        seeds: repetitions, seeds 0 .. seeds - 1.
        batch: samples computed at once.
    """

    dataset: Dataset
    features: Features
    real: Moments
    real_features: Tensor
    halves: list[float]
    num: int
    seeds: int
    batch: int


def new_trial(dataset: Dataset, features: Features, num: int, seeds: int, batch: int) -> Trial:
    """A trial against all of the data.

    Raises:
        UserError: features for data of another shape, or fewer than four real samples.
    """
    if len(dataset.data) < 4:
        raise UserError(
            f"{dataset.name}: {len(dataset.data)} real samples are too few for a score, give 4 or more"
        )
    real = extract_features(features, dataset.data)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(0))[:MOST_NEIGHBOURS]
    halves = halves_distance(real, SPLITS)
    return Trial(dataset, features, moments(real), real[order], halves, num, seeds, batch)


@dataclass(frozen=True)
class Scores:
    """One number for each seed.

    Attributes:
        fds: Frechet distances.
        kernels: kernel distances.
        neighbours: precisions and recalls; empty where there are too few samples or data.
        agreements: shares of samples that the classifier gives their label; empty where there are no classes.
        sliced: sliced Wasserstein distances of points (D,) to as many of the data; empty for images.
    """

    fds: list[float]
    kernels: list[float]
    neighbours: list[PrecisionRecall]
    agreements: list[float]
    sliced: list[float]


def score_all(trial: Trial, contenders: Sequence[Contender], progress: bool = True) -> list[Scores]:
    """Scores of each contender over all seeds; the bar counts network evaluations, so its rate is even."""
    total = sum(one.nfe for one in contenders) * trial.num * trial.seeds
    with tqdm(total=total, unit=" evaluations", unit_scale=True, disable=not progress) as bar:
        return [_score(trial, one, bar) for one in contenders]


def _score(trial: Trial, one: Contender, bar: tqdm[Any]) -> Scores:
    bar.set_description(f"{one.model.name}, {one.nfe} NFE")
    scores = Scores([], [], [], [], [])
    for seed in range(trial.seeds):
        labels = draw_labels(trial, one.model, seed)
        generated = _generate(trial, one, seed, labels, bar)
        scores.fds.append(frechet_distance_of_moments(trial.real, moments(generated.features)))
        few = generated.features[:MOST_NEIGHBOURS]
        scores.kernels.append(kernel_distance(trial.real_features, few))
        if min(len(trial.real_features), len(few)) > NEIGHBOURS:
            scores.neighbours.append(precision_recall(trial.real_features, few))
        scores.agreements.extend(generated.agreements)
        if len(trial.dataset.data_shape) == 1:
            scores.sliced.append(_sliced_to_data(trial, generated.samples, seed))
    return scores


@dataclass(frozen=True)
class _Generated:
    """One seed's samples as stored, their features (num, D), and their label agreement (no number or one)."""

    samples: Tensor
    features: Tensor
    agreements: list[float]


def _generate(trial: Trial, one: Contender, seed: int, labels: Tensor | None, bar: tqdm[Any]) -> _Generated:
    samples: list[Tensor] = []
    features: list[Tensor] = []
    agreed = 0.0
    for part in one.model.sample_batches(trial.num, one.plan, labels, seed, trial.batch):
        first = sum(map(len, samples))
        samples.append(part)
        features.append(extract_features(trial.features, part))
        if labels is not None:
            agreed += len(part) * (label_agreement(trial.features, part, labels[first:][: len(part)]) or 0.0)
        bar.update(one.nfe * len(part))
    knows_classes = labels is not None and trial.features.classify is not None
    agreements = [agreed / trial.num] if knows_classes else []
    return _Generated(torch.cat(samples), torch.cat(features), agreements)


def _sliced_to_data(trial: Trial, samples: Tensor, seed: int) -> float:
    """To as many points of the data as there are samples (the samples are cut to the data, where it has fewer)."""
    order = torch.randperm(len(trial.dataset.data), generator=torch.Generator().manual_seed(seed))
    real = trial.dataset.data[order[: len(samples)]]
    return sliced_wasserstein(samples[: len(real)], real, seed=seed)


def draw_labels(trial: Trial, model: Model, seed: int) -> Tensor | None:
    """(num,) labels drawn from the data's own; all classes in turn for data without; None for a model without."""
    if model.num_classes == 0 or trial.dataset.labels is None:
        return model.labels(trial.num)
    return labels_like(trial.dataset, trial.num, seed)


def seconds_per_sample(contenders: Sequence[Contender]) -> list[float]:
    """Median seconds a sample of each contender.

    A whole sampling call is timed, noise and decoding included, on TIMING_BATCH samples; after one call of each to
    warm up, TIMING_REPEATS rounds call them in turn, so that a busy moment of the machine meets all of them.
    """
    times: list[list[float]] = [[] for _ in contenders]
    for repeat in range(1 + TIMING_REPEATS):
        for one, taken in zip(contenders, times, strict=True):
            start = time.perf_counter()
            list(one.model.sample_batches(TIMING_BATCH, one.plan, seed=repeat, batch=TIMING_BATCH))
            taken.append((time.perf_counter() - start) / TIMING_BATCH)
    return [statistics.median(taken[1:]) for taken in times]
