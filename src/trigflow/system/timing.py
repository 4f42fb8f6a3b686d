"""Comparable times: timed calls are interleaved, so that other load on the machine affects all of them equally."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)


def time_in_turn(
    calls: Mapping[Name, Callable[[int], object]], rounds: int, after: Callable[[], object] = lambda: None
) -> dict[Name, list[float]]:
    """The seconds of each call in each round, after a warm-up round that is not counted.

    Args:
        calls: functions by name, called with the number of the round, 0 in the warm-up round. They must synchronise
            with the GPU.
        rounds: number of timed rounds, >= 1.
        after: called after each call, not timed.
    """
    seconds: dict[Name, list[float]] = {name: [] for name in calls}
    for number in range(1 + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call(number)
            seconds[name].append(time.perf_counter() - start)
            after()
    return {name: taken[1:] for name, taken in seconds.items()}
