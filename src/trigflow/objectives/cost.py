"""What an objective costs for each image, where its networks have update periods of their own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import combinations

from trigflow.objectives.batch import Objective


def mean_forwards(objective: Objective, periods: Mapping[str, int]) -> float:
    """Forward passes for each image, the mean over all steps.

    Args:
        objective: what is trained.
        periods: every how many steps a network is updated, by name; 1 for those left out.
    """
    shares = _shares({name: periods.get(name, 1) for name in objective.trains})
    return sum(share * objective.forwards_of(due) for due, share in shares if share)


def _shares(periods: Mapping[str, int]) -> Iterator[tuple[frozenset[str], float]]:
    """Every set of networks, and the share of the steps that update just these: all of them are due at step 0.

    1/lcm of the periods is the share of the steps that update these and perhaps others; the others are counted out by
    inclusion and exclusion.
    """
    for due in _subsets(periods):
        others = periods.keys() - due
        yield (
            due,
            sum(
                (-1) ** len(more) / math.lcm(*(periods[name] for name in due | more))
                for more in _subsets(others)
            ),
        )


def _subsets(names: Mapping[str, int] | set[str]) -> Iterator[frozenset[str]]:
    for size in range(len(names) + 1):
        yield from map(frozenset, combinations(sorted(names), size))
