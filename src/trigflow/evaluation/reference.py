"""What is measured of real data alone: once for the same data in the same features, then read from the cache.

The cache lies in $TRIGFLOW_CACHE (`system.cache.cache_folder`). The name of a file is a hash of all that its content
depends on: the bytes of the data, its labels, the features' tensors and how they take a sample in, the version of this
package. A damaged file is recreated. Where the cache cannot be written, all is computed each time.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from trigflow.data import Dataset
from trigflow.evaluation.metrics import (
    METRICS,
    Features,
    SampleSet,
    extract_features,
    halves_distance,
    measured,
    moments,
)
from trigflow.evaluation.metrics.features import class_logits
from trigflow.evaluation.metrics.haze import levels
from trigflow.evaluation.metrics.metric import MOST_PAIRED, MOST_POOLED, Moments
from trigflow.evaluation.metrics.nearest import spacing
from trigflow.evaluation.metrics.neighbours import NEIGHBOURS, radii
from trigflow.system.cache import cache_folder
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, make_folder
from trigflow.system.tensors import read_state, tensors_digest, write_state
from trigflow.system.version import __version__

_FORMAT = 3
_CHUNK_BYTES = 2**24


@dataclass(frozen=True)
class Reference:
    """Real data in some features.

    Attributes:
        data: as metrics see it.
        halves: FD between two random halves of the data, for several splits.
        key: its `reference_key`; "" for features whose identity is not known.
    """

    data: SampleSet
    halves: list[float]
    key: str = ""


def reference(dataset: Dataset, features: Features, splits: int, progress: bool = False) -> Reference:
    """All of the data in the features, from the cache if it is there.

    Args:
        dataset: real data, four samples or more.
        features: whose identity is known are cached, others are not.
        splits: into halves; 0 for none.
        progress: show a bar on stderr if it takes longer than a second.

    Raises:
        UserError: features for data of another shape, or fewer than four real samples.
    """
    if len(dataset.data) < 4:
        raise UserError(
            f"{dataset.name}: {len(dataset.data)} real samples are too few for a score, give 4 or more"
        )
    if not features.identity:
        return _measured(dataset, features, splits, progress)
    key = reference_key(dataset, features, splits)
    path = cache_folder() / f"reference-{key}.safetensors"
    with contextlib.suppress(DamagedFile, UserError, LookupError):  # none yet, or a damaged one
        return replace(_unpacked(dataset, features, *read_state(path)), key=key)
    found = replace(_measured(dataset, features, splits, progress), key=key)
    with contextlib.suppress(UserError):  # without room for it, it is measured again next time
        make_folder(path.parent)
        write_state(path, *_packed(found))
    return found


def data_digest(dataset: Dataset) -> str:
    """SHA-256 of the data as stored and of its labels, read a piece at a time: mapped data stays in its file."""
    digest = hashlib.sha256(f"{dataset.data.dtype} {tuple(dataset.data.shape)}".encode())
    row_bytes = dataset.data[0].numel() * dataset.data.element_size()
    for part in torch.split(dataset.data, max(1, _CHUNK_BYTES // row_bytes)):
        digest.update(part.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    if dataset.decoder is not None:
        digest.update(f"decoded by {dataset.decoder.sha256}".encode())
    if dataset.labels is not None:
        digest.update(f"labels of {dataset.num_classes}".encode())
        digest.update(dataset.labels.cpu().contiguous().numpy().data)
    return digest.hexdigest()


def reference_key(dataset: Dataset, features: Features, splits: int) -> str:
    """The name of what is measured of this data in these features; another one as soon as anything of it changes."""
    tensors = {} if features.network is None else features.network.state_dict()
    origin = (
        *(_FORMAT, __version__, splits, MOST_PAIRED, MOST_POOLED),
        *(data_digest(dataset), features.name, features.checks_labels, _alone()),
        tensors_digest(tensors, features.identity),
    )
    return hashlib.sha256(repr(origin).encode()).hexdigest()[:32]


def pool_rows(count: int, width: int) -> Tensor:
    """Rows of the data, of `count`, whose vectors of `width` numbers are kept: int64, in random order.

    The first MOST_PAIRED of them are those that metrics take all pairs of.
    """
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: max(MOST_PAIRED, MOST_POOLED // width)]


def _measured(dataset: Dataset, features: Features, splits: int, progress: bool) -> Reference:
    vectors, grey = _looked_at(dataset, features, progress)
    pool = vectors[pool_rows(*vectors.shape)]
    logits, some, halves = (
        class_logits(features, vectors),
        pool[:MOST_PAIRED],
        halves_distance(vectors, splits),
    )
    balls = radii(some) if len(some) > NEIGHBOURS else torch.zeros(0, dtype=torch.float64)
    data = _sample_set(dataset, features, moments(vectors), pool, balls, grey, spacing(some, pool))
    seen = replace(data, logits=logits)
    return Reference(replace(data, alone={name: measured(name, seen, seen) for name in _alone()}), halves)


def _alone() -> list[str]:
    return [name for name, metric in METRICS.items() if metric.alone]


def _sample_set(
    dataset: Dataset,
    features: Features,
    known: Moments,
    pool: Tensor,
    balls: Tensor,
    grey: Tensor | None,
    apart: float,
) -> SampleSet:
    points = dataset.data if dataset.data.ndim == 2 else None
    some = pool[:MOST_PAIRED]
    return SampleSet(features, known, some, None, dataset.labels, points, balls, grey, pool, apart)


def _looked_at(dataset: Dataset, features: Features, progress: bool) -> tuple[Tensor, Tensor | None]:
    """The features (N, D) of all samples, and the levels (256,) of all their pixels, if they are images of 8 bits."""
    parts = torch.split(dataset.data, features.batch)
    bar = tqdm(parts, f"features of {dataset.name}", unit="batch", delay=1, disable=not progress)
    vectors, grey = [], []
    for part in bar:
        samples = dataset.samples(part)
        vectors.append(extract_features(features, samples))
        if samples.dtype == torch.uint8:
            grey.append(levels(samples).cpu())
    return torch.cat(vectors), torch.stack(grey).sum(0) if grey else None


def _packed(found: Reference) -> tuple[dict[str, Tensor], dict[str, Any]]:
    data = found.data
    tensors = {"mean": data.moments.mean, "cov": data.moments.cov, "pool": data.pool, "radii": data.radii}
    present = {
        name: tensor for name, tensor in (tensors | {"levels": data.levels}).items() if tensor is not None
    }
    state = {"num": data.moments.num, "spacing": data.spacing, "alone": dict(data.alone)}
    return present, {"halves": found.halves, **state}


def _unpacked(
    dataset: Dataset, features: Features, tensors: dict[str, Tensor], state: dict[str, Any]
) -> Reference:
    known = Moments(tensors["mean"], tensors["cov"], state["num"])
    own = (tensors["pool"], tensors["radii"], tensors.get("levels"), state["spacing"])
    return Reference(
        replace(_sample_set(dataset, features, known, *own), alone=state["alone"]), state["halves"]
    )
