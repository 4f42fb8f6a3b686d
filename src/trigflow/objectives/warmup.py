"""The tangent warm-up r in [0, 1], the weight of the second term of the tangent (arXiv 2410.11081, section 4.2)."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import numpy as np
from pydantic import AfterValidator, Field

Knots = tuple[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0, le=1)]], ...]


def _rises(warmup: int | Knots) -> int | Knots:
    if isinstance(warmup, tuple):
        lengths = [length for length, _ in warmup]
        if not warmup or any(next_ <= one for one, next_ in pairwise(lengths)):
            raise ValueError("a length, or pairs of a length and its r, the lengths rising")
    return warmup


Warmup = Annotated[Annotated[int, Field(ge=0)] | Knots, AfterValidator(_rises)]


def warmup_at(warmup: int | Knots, progress: float) -> float:
    """r at the given progress: linear from (0, 0) through the knots, constant after the last one.

    Args:
        warmup: H, the paper's r = min(1, progress/H), where 0 means r = 1 throughout; or knots (length, r), of which
            one at length 0 is the initial r.
        progress: >= 0, in the unit of the lengths.
    """
    knots = warmup if isinstance(warmup, tuple) else ((warmup, 1.0),)
    if knots[0][0] > 0:
        knots = ((0, 0.0), *knots)
    lengths, values = zip(*knots, strict=True)
    return float(np.interp(progress, lengths, values))


def scaled_warmup(warmup: int | Knots, factor: float) -> int | Knots:
    """The same warm-up with all lengths multiplied by `factor`."""
    if isinstance(warmup, tuple):
        return tuple((round(length * factor), r) for length, r in warmup)
    return round(warmup * factor)
