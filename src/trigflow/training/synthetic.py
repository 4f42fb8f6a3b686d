"""Synthetic training data: samples of the teacher.

A consistency model should be trained at points x_t of the teacher's paths. A small data set with added noise gives
other points: a teacher that generalises also has samples between the data, where the student would not be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trigflow.core.guidance import highest_scale, scales_in
from trigflow.core.randomness import SampleRandom
from trigflow.core.samplers import count_nfe
from trigflow.data import Dataset, labels_like
from trigflow.data.codecs import LatentCodec
from trigflow.models.model import Model
from trigflow.system.distributed import SINGLE_PROCESS, World, whole
from trigflow.system.files import DamagedFile
from trigflow.system.tensors import read_state, tensors_digest, write_state
from trigflow.training.progress import counted

BATCH = 500


def synthetic_data(
    teacher: Model,
    dataset: Dataset,
    num: int,
    seed: int,
    guidance_scale: float | tuple[float, float],
    cache: Path,
    progress: bool = True,
    world: World = SINGLE_PROCESS,
) -> Dataset:
    """The data set with its data replaced by `num` samples of the teacher, by the sampler of its card.

    Args:
        teacher: a diffusion model, with its guide if it has one.
        dataset: the data that it was trained on; labels are drawn from its labels.
        num: number of samples.
        seed: seed of the run. Noise and labels are drawn with the seed 2^32 - 1 - seed, which evaluations do not use.
        guidance_scale: 1 is no guidance; with a range, the scale of each sample is uniform in it.
        cache: file in which the samples are cached, so that a resumed run does not draw them again.
        progress: show a progress bar on stderr.
        world: processes that all have the teacher and share the file system; each draws its share.

    Raises:
        UserError: the file cannot be written.
    """
    own_seed = 2**32 - 1 - seed
    labels = labels_like(dataset, num, own_seed)
    origin = {"num": num, "teacher": _digest(teacher, world)}
    if teacher.guide is not None:
        origin["guide"] = _digest(teacher.guide, world)
    data = _cached(cache, origin, (num, *teacher.card.data_shape), dataset.data.dtype)
    if world.any(data is None):
        shown = progress and world.is_main
        samples = _sample(teacher, labels, num, own_seed, guidance_scale, shown, world)
        data = samples.to(dataset.data.dtype)
        world.by_first(write_state, cache, {"data": data}, origin)
    assert data is not None
    place = dataset.data.device
    return replace(
        dataset,
        data=data.to(place),
        labels=labels,  # where those of the data are
        oracle=None,
        mapped=False,
        spread=None,
    )


def _digest(model: Model, world: World) -> str:
    """The digest of its weights, the same in all processes."""
    return world.first_text(tensors_digest(whole(model.precond.state_dict(), world)))


def _cached(
    cache: Path, origin: Mapping[str, object], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """The cached samples; None if there are none, if they are of another teacher, or if the file is damaged."""
    if not cache.exists():
        return None
    try:
        tensors, state = read_state(cache)
    except DamagedFile:
        return None
    data = tensors.get("data")
    if state != origin or data is None or data.shape != shape or data.dtype != dtype:
        return None
    return data


def _sample(
    teacher: Model,
    labels: Tensor | None,
    num: int,
    seed: int,
    guidance_scale: float | tuple[float, float],
    progress: bool,
    world: World,
) -> Tensor:
    plan = teacher.plan(guidance_scale=highest_scale(guidance_scale))
    scales = None
    if isinstance(guidance_scale, tuple):
        scales = scales_in(*guidance_scale, SampleRandom(seed, torch.arange(num)).uniform("guidance"))
    latents = isinstance(teacher.codec, LatentCodec)
    parts = teacher.sample_batches(num, plan, labels, seed, BATCH, scales, latents, world)
    try:
        return torch.cat(list(counted(parts, num, "samples of the teacher", progress)))
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            "stopped while the teacher generated training data; the same command with --resume starts that part again"
        ) from None


def evaluations_per_sample(
    teacher: Model, guidance_scale: float | tuple[float, float], has_guide: bool
) -> int:
    """The network evaluations (NFE) per sample of `synthetic_data`; a guide is assumed to be as large as the teacher.

    Args:
        teacher: the teacher that is sampled.
        guidance_scale: its guidance scale, a number or a range.
        has_guide: whether another model guided the teacher, which need not be available.

    Raises:
        UserError: the teacher cannot be guided.
    """
    scale = highest_scale(guidance_scale)
    if has_guide and scale != 1:
        return 2 * count_nfe(teacher.plan(guidance_scale=1.0), teacher.card.data_shape)
    return count_nfe(teacher.plan(guidance_scale=scale), teacher.card.data_shape)
