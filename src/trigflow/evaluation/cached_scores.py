"""Scores of an evaluation as they are measured, so that a stopped one goes on: a small file for each model,
seed and judge.

The name of a file is a hash of all that the numbers depend on: the real data in its features, the model's weights and
how it is sampled, seed and number of samples, the names of the metrics (their code is not looked at), the version of
this package. Nothing is kept of what has no such hash: networks and features whose code is the user's own and cannot be
read.

Teachers take a hundred evaluations a sample and are scored again beside every student. Their scores are kept in the
cache folder as well, for all evaluations, under a name that depends on this package's code, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import trigflow
from trigflow.data.codecs import codec_to_json
from trigflow.evaluation.metrics import METRICS, SCORE
from trigflow.models.model import Model
from trigflow.system.cache import cache_folder
from trigflow.system.config import to_json
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.files import is_occupied, make_folder, read_json, write_json
from trigflow.system.tensors import tensors_digest
from trigflow.system.version import __version__

Numbers = dict[str, float | None]  # None for a metric that does not apply
SCORES = "scores"  # the folder, within that of the report
_NUMBERS = (SCORE, "nfe")  # are never None
_OURS = re.compile(r"[0-9a-f]{32}\.json")


def score_key(trial_key: str, model: Model, num: int) -> str | None:
    """All that the scores of a model depend on, except the seed; None where that cannot be determined.

    Args:
        trial_key: of the real data in its features (`reference.reference_key`), "" where there is none.
        model: the model, sampled by its `default_plan`.
        num: samples of a seed.
    """
    weights = _weights_key(model)
    if not trial_key or weights is None or ":" in model.default_plan.sampler:
        return None
    return repr(
        (__version__, trial_key, weights, sorted(asdict(model.default_plan).items()), num, sorted(METRICS))
    )


def _weights_key(model: Model) -> str | None:
    """Of the network and, where there is one, its guide; None for a network whose code is user-defined."""
    network = getattr(model.card, "network", None)
    if network is None or ":" in network.name:
        return None
    own = (
        to_json(network),
        to_json(model.card.precond),
        codec_to_json(model.codec),
        model.num_classes,
        model.precision,
        *model.card.unseen,  # which are not sampled
    )
    weights = tensors_digest(model.precond.network.state_dict(), repr(own))
    if model.guide is None:
        return weights
    guide = _weights_key(model.guide)
    return guide and f"{weights} guided by {guide}"


@dataclass(frozen=True)
class Store:
    """A folder of scores, which exists, and what their names depend on besides all else."""

    folder: Path
    prefix: str = ""

    def path(self, key: str | None, seed: int) -> Path | None:
        if key is None:
            return None
        name = hashlib.sha256(f"{self.prefix}{key} {seed}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.json"


def common_store() -> Store | None:
    """Of all evaluations, in the cache folder; None where that cannot be written."""
    folder = cache_folder() / SCORES
    with contextlib.suppress(UserError):
        make_folder(folder)
        return Store(folder, f"{_code_digest()} ")
    return None


@cache
def _code_digest() -> str:
    """Of this package's code: numbers that another code has measured are not taken for its own."""
    digest = hashlib.sha256()
    root = Path(trigflow.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def cached_scores(
    stores: Sequence[Store],
    keys: Sequence[str | None],
    seed: int,
    measure: Callable[[list[int]], list[Numbers]],
    world: World = SINGLE_PROCESS,
) -> tuple[list[Numbers], bool]:
    """The numbers of a seed by each judge, and whether all had been kept; the others are measured, and kept.

    Args:
        stores: where numbers are looked for, in turn, and kept; none: nothing is kept.
        keys: one for each judge, see `score_key`; None: nothing is kept of it.
        seed: of the samples.
        measure: gives the numbers by those judges whose places in `keys` it gets.
        world: processes that ask alike; the first, which alone has a folder, decides for all.

    Raises:
        UserError: the folder cannot be written.
    """
    paths = [[path for store in stores if (path := store.path(key, seed))] for key in keys]
    kept = [next(filter(None, map(_whole, own)), None) for own in paths]
    missing = [place for place, one in enumerate(kept) if world.any(world.is_main and one is None)]
    if not missing:
        return [one or {} for one in kept], True
    measured = dict(zip(missing, measure(missing), strict=True))
    with world.together():
        for place, numbers in measured.items():
            for path in paths[place]:
                write_json(path, numbers)
    return [measured.get(place, one or {}) for place, one in enumerate(kept)], False


def _whole(path: Path) -> Numbers | None:
    """None for no file, a damaged one, or one without a number of every metric: it is measured again."""
    if not path.exists():
        return None
    try:
        data: Any = read_json(path)
    except UserError:
        return None
    if not isinstance(data, dict) or data.keys() != {*METRICS, "nfe"}:
        return None
    return data if all(_is_number(data[name], name not in _NUMBERS) for name in data) else None


def _is_number(value: object, or_none: bool) -> bool:
    return or_none if value is None else type(value) is float and math.isfinite(value)


def holds_scores(folder: Path) -> bool:
    """Whether there is a file that `cached_scores` has written; other files in the folder belong to the user."""
    return is_occupied(folder, but=lambda name: not _OURS.fullmatch(name))
