"""The measurements of an evaluation: the metrics of every model and seed, evaluations, seconds a sample."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.core.samplers import CountNFE
from trigflow.data import Dataset, labels_like
from trigflow.evaluation.cached_scores import Numbers, Store, cached_scores, common_store, score_key
from trigflow.evaluation.metrics import METRICS, SCORE, Features, SampleSet, extract_features, measured
from trigflow.evaluation.metrics.haze import levels_of_each
from trigflow.evaluation.metrics.metric import Moments, sample_set
from trigflow.evaluation.metrics.nearest import nearest
from trigflow.evaluation.reference import data_digest, pool_rows, reference
from trigflow.models.model import Model
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.timing import time_in_turn

SPLITS = 5
TIMING_BATCH, TIMING_REPEATS = 64, 5


@dataclass(frozen=True)
class Judge:
    """Features in which samples are scored, and the real data in them.

    Attributes:
        features: what the distances are taken in.
        real: the real data as metrics see it.
        halves: FD between two random halves of the real data, for several splits.
        key: of the real data in the features, see `reference.Reference`.
    """

    features: Features
    real: SampleSet
    halves: list[float]
    key: str = ""


@dataclass(frozen=True)
class Trial:
    """What all models of an evaluation are scored on: the real data, the judges, and the number of samples.

    Attributes:
        dataset: the real data.
        judges: one or several, which all look at the same samples; the first gives the main score.
        num: samples of each seed.
        seeds: repetitions, seeds 0 .. seeds - 1.
        batch: samples computed at once.
    """

    dataset: Dataset
    judges: Sequence[Judge]
    num: int
    seeds: int
    batch: int

    @property
    def features(self) -> Features:
        """What the main score is taken in."""
        return self.judges[0].features

    @property
    def score_name(self) -> str:
        """What the main score is called."""
        return self.name_of(self.judges[0])

    def name_of(self, judge: Judge) -> str:
        """What a judge's distance is called: a distance to decoded latents is not one to real images."""
        decoded = " to decoded latents" if self.dataset.decoder is not None else ""
        return judge.features.score_name + decoded


def new_trial(
    dataset: Dataset, features: Sequence[Features], num: int, seeds: int, batch: int, progress: bool = False
) -> Trial:
    """A trial with all of the data, whose moments and so on come from the cache if they were computed before.

    Raises:
        UserError: features for data of another shape, or fewer than four real samples.
    """
    found = [reference(dataset, one, SPLITS, progress) for one in features]
    judges = [Judge(one, own.data, own.halves, own.key) for one, own in zip(features, found, strict=True)]
    return Trial(dataset, judges, num, seeds, batch)


def samples_alone(dataset: Dataset, features: Sequence[Features], num: int, seeds: int, batch: int) -> Trial:
    """The trial of a process that draws samples and computes no metric: the real data is left out."""
    nothing = torch.empty(0)
    judges = [Judge(one, SampleSet(one, Moments(nothing, nothing, 0), nothing), []) for one in features]
    return Trial(dataset, judges, num, seeds, batch)


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


def score_held_out(judge: Judge, held_out: Dataset, progress: bool = False) -> Scores:
    """All of other real data than the judge's, in the place of samples: what a perfect model would get.

    Raises:
        UserError: fewer than four samples.
    """
    found = reference(held_out, judge.features, splits=0, progress=progress)
    return Scores([numbers_of(judge.real, found.data)])


def score_all(
    trial: Trial,
    models: Sequence[Model],
    progress: bool = True,
    folder: Path | None = None,
    world: World = SINGLE_PROCESS,
) -> list[list[Scores]]:
    """By each judge, the scores of each model over all seeds; the bar counts the steps of all samples.

    Args:
        trial: what they are compared with.
        models: each is sampled by its `default_plan`.
        progress: draw the bar.
        folder: exists; keeps the scores of every seed, and those that it has are not measured again. Those of teachers
            are kept in the cache folder, too.
        world: processes that all draw samples; the first scores them, those of the others are nothing.
    """
    total = sum(model.default_plan.steps for model in models) * trial.num * trial.seeds
    with tqdm(total=total, unit=" steps", unit_scale=True, disable=not progress) as bar:
        by_model = [_score(trial, model, bar, folder, world) for model in models]
    return [list(scores) for scores in zip(*by_model, strict=True)]


def _score(trial: Trial, model: Model, bar: tqdm[Any], folder: Path | None, world: World) -> list[Scores]:
    """By each judge."""
    bar.set_description(f"{model.name}, {model.default_plan.sampler}, steps {model.default_plan.steps}")
    stores = [Store(folder)] if folder else []
    if world.is_main and not model.is_student and (common := common_store()):
        stores.append(common)
    keys = [score_key(judge.key, model, trial.num) if stores else None for judge in trial.judges]
    found = [Scores() for _ in trial.judges]
    for seed in range(trial.seeds):
        measure = partial(_score_seed, trial, model, seed, bar, world)
        numbers, were_kept = cached_scores(stores, keys, seed, measure, world)
        if world.is_main:
            for scores, own in zip(found, numbers, strict=True):
                scores.seeds.append(own)
        bar.update(model.default_plan.steps * trial.num if were_kept else 0)
    return found


def _score_seed(
    trial: Trial, model: Model, seed: int, bar: tqdm[Any], world: World, places: list[int]
) -> list[Numbers]:
    """By the judges of these places, from the same samples; nothing in all processes but the main one."""
    labels = draw_labels(trial, model, seed)
    counter = model.counter()
    judges = [trial.judges[place] for place in places]
    drawn = _generate(replace(trial, judges=judges), model, seed, labels, bar, world, counter)
    with world.together():
        if world.is_main:
            evaluations: Numbers = {"nfe": float(counter.nfe)}
            return [
                numbers_of(judge.real, drawn.seen_by(judge.features, vectors, labels, seed)) | evaluations
                for judge, vectors in zip(judges, drawn.vectors, strict=True)
            ]
    return [{} for _ in judges]


@dataclass(frozen=True)
class _Drawn:
    """What is kept of one seed's samples, on the CPU.

    Attributes:
        vectors: for each judge, the features (num, D).
        points: (num, d), the samples where they are vectors; None for images.
        levels: (256,), `haze.levels` of all; None for vectors.
    """

    vectors: list[Tensor]
    points: Tensor | None
    levels: Tensor | None

    def seen_by(self, features: Features, vectors: Tensor, labels: Tensor | None, seed: int) -> SampleSet:
        return sample_set(features, vectors, self.points, labels, seed, self.levels)


def _generate(
    trial: Trial,
    model: Model,
    seed: int,
    labels: Tensor | None,
    bar: tqdm[Any],
    world: World,
    counter: CountNFE,
) -> _Drawn:
    """One seed's samples. Each process looks at those that it draws, where they are: images never leave the device."""
    points: list[Tensor] = []
    levels: list[Tensor] = []
    vectors: list[list[Tensor]] = [[] for _ in trial.judges]
    left = trial.num
    for part in model.sample_batches(
        trial.num, labels=labels, seed=seed, batch=trial.batch, world=world, counter=counter, on_device=True
    ):
        for own, judge in zip(vectors, trial.judges, strict=True):
            own.append(world.joined(extract_features(judge.features, part))[:left])
        if len(trial.dataset.data_shape) == 1:
            points.append(world.joined(part)[:left])
        elif part.dtype == torch.uint8:
            levels.append(world.joined(levels_of_each(part))[:left].sum(0))
        left -= len(vectors[0][-1])
        bar.update(model.default_plan.steps * len(vectors[0][-1]))
    return _Drawn(
        [torch.cat(own) for own in vectors],
        torch.cat(points) if points else None,
        torch.stack(levels).sum(0) if levels else None,
    )


def nearest_data(trial: Trial, images: Tensor) -> Tensor:
    """For each of some images (B, C, H, W), the real one that lies nearest in the main judge's features: as many.

    It is looked for among the data whose vectors are kept (`reference.pool_rows`).
    """
    judge, data = trial.judges[0], trial.dataset
    pool = judge.real.vectors if judge.real.pool is None else judge.real.pool
    rows = pool_rows(len(data.data), pool.shape[1])[
        nearest(extract_features(judge.features, images), pool).rows
    ]
    return data.samples(data.data[rows]).cpu()


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
