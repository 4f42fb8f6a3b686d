"""Comparable times: timed calls are interleaved, so that a busy moment of the machine affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def time_in_turn(
    calls: Mapping[Name, Callable[[int], object]], rounds: int, after: Callable[[], object] = lambda: None
) -> dict[Name, list[float]]:
    """Seconds of each call, a value of each round; a round before them warms up and is not counted.

    Args:
        calls: by name, each given the number of the round, 0 in the one that warms up. Work that a GPU was asked for
            they must wait for.
        rounds: >= 1.
        after: done after each call, its time not taken.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(number)
            seconds[name].append(time.perf_counter() - start)
            after()
    return {name: taken[1:] for name, taken in seconds.items()}
