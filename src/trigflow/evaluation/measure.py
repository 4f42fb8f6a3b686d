"""The measurements of an evaluation: the metrics of every model and seed, evaluations, seconds a sample."""

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
from trigflow.evaluation.metrics import METRICS, SCORE, Features, SampleSet, extract_features, measured
from trigflow.evaluation.metrics.metric import Moments, sample_set
from trigflow.evaluation.reference import data_digest, reference, reference_key
from trigflow.models.model import Model
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.timing import time_in_turn

SPLITS = 5
TIMING_BATCH, TIMING_REPEATS = 64, 5


@dataclass(frozen=True)
class Trial:
    """What all models of an evaluation are scored on: the real data, the features, and the number of samples.

    Attributes:
        dataset, features: the real data, and what the distances are taken in.
        num: samples of each seed.
        seeds: repetitions, seeds 0 .. seeds - 1.
        batch: samples computed at once.
        real: the real data as metrics see it.
        halves: FD between two random halves of the real data, for several splits.
    """

    dataset: Dataset
    features: Features
    num: int
    seeds: int
    batch: int
    real: SampleSet
    halves: list[float]

    @property
    def score_name(self) -> str:
        """What the distance is called: a distance to decoded latents is not one to real images."""
        decoded = " to decoded latents" if self.dataset.decoder is not None else ""
        return self.features.score_name + decoded


def new_trial(
    dataset: Dataset, features: Features, num: int, seeds: int, batch: int, progress: bool = False
) -> Trial:
    """A trial with all of the data, whose moments and so on come from the cache if they were computed before.

    Raises:
        UserError: features for data of another shape, or fewer than four real samples.
    """
    found = reference(dataset, features, SPLITS, progress)
    return Trial(dataset, features, num, seeds, batch, found.data, found.halves)


def samples_alone(dataset: Dataset, features: Features, num: int, seeds: int, batch: int) -> Trial:
    """The trial of a process that draws samples and computes no metric: the real data is left out."""
    nothing = torch.empty(0)
    real = SampleSet(features, Moments(nothing, nothing, 0), nothing)
    return Trial(dataset, features, num, seeds, batch, real, [])


@dataclass(frozen=True)
class Scores:
    """What was measured of a model, or of held-out data, for each seed.

    Attributes:
        seeds: for each, the numbers by their names in METRICS, and "nfe", the evaluations of the network for a sample,
            counted while they were drawn (real data has none).
    """

    seeds: list[Numbers] = field(default_factory=list)

    @property
    def nfe(self) -> int:
        """Of a sample, the same for all seeds."""
        return int(self.of("nfe")[0])

    @property
    def fds(self) -> list[float]:
        """The Frechet distance for each seed."""
        return self.of(SCORE)

    def of(self, name: str) -> list[float]:
        """The numbers of a metric, one for each seed; none where it does not apply."""
        return [value for numbers in self.seeds if (value := numbers[name]) is not None]


def numbers_of(real: SampleSet, own: SampleSet) -> Numbers:
    """Every metric in METRICS of samples, or of held-out data in their place."""
    return {name: measured(name, real, own) for name in METRICS}


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
    """All of other real data than the trial's, in the place of samples: what a perfect model would get.

    Raises:
        UserError: fewer than four samples.
    """
    found = reference(held_out, trial.features, splits=0, progress=progress)
    return Scores([numbers_of(trial.real, found.data)])


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
            scores.seeds.append(numbers)
        bar.update(model.default_plan.steps * trial.num if was_kept else 0)
    return scores


def _score_seed(trial: Trial, model: Model, seed: int, bar: tqdm[Any], world: World) -> Numbers:
    labels = draw_labels(trial, model, seed)
    counter = model.counter()
    features, points = _generate(trial, model, seed, labels, bar, world, counter)
    numbers: Numbers = {}
    with world.together():
        if world.is_main:
            own = sample_set(trial.features, features, points, labels, seed)
            numbers = numbers_of(trial.real, own) | {"nfe": float(counter.nfe)}
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
