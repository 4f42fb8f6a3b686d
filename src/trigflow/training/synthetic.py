"""Synthetic training data: samples of the teacher.

A consistency model is trained on points of the teacher's paths. Noise added to a small data set gives other points: a
teacher that generalises has mass between the data, where the student would never be trained.
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
    """`num` samples of the teacher, by the sampler of its card, in the place of the data.

    Args:
        teacher: a diffusion model, with its guide if it has one.
        dataset: the data that it was trained on; labels are drawn from its labels.
        num: number of samples.
        seed: of the run. Noises and labels are those of the seed 2^32 - 1 - seed, which no evaluation uses unasked.
        guidance_scale: 1 is none; a range: uniform in it, for each sample.
        cache: file that keeps the samples, so that a resumed run need not make them again.
        progress: show a bar on stderr.
        world: processes that all have the teacher and see the file; each makes its share.

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
    """Of its weights, the same in all processes."""
    return world.first_text(tensors_digest(whole(model.precond.state_dict(), world)))


def _cached(
    cache: Path, origin: Mapping[str, object], shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """The samples of a former start; None where there are none, of another teacher, or the file is damaged."""
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
    """What a sample of `synthetic_data` costs, in evaluations of the network; a guide is taken to be as large.

    Args:
        teacher: that made them.
        guidance_scale: that they were made with, a number or a range.
        has_guide: whether another model guided the teacher, which need not be available.

    Raises:
        UserError: it cannot be guided.
    """
    scale = highest_scale(guidance_scale)
    if has_guide and scale != 1:
        return 2 * count_nfe(teacher.plan(guidance_scale=1.0))
    return count_nfe(teacher.plan(guidance_scale=scale))
