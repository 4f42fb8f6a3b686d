"""The rows of a report: what was measured of a model, and of a student beside the reference teacher."""

from __future__ import annotations

import statistics
from typing import Any

from trigflow.evaluation.measure import Scores
from trigflow.evaluation.metrics import METRICS, SCORE
from trigflow.models.model import Model

Row = dict[str, Any]
METHODS = {"scd": "sCD", "sct": "sCT"}


def row_of(model: Model, scores: Scores) -> Row:
    """Of a model sampled in one way, by one judge."""
    own = {"name": model.name, "method": METHODS.get(model.card.objective, model.card.objective)}
    plan: Row = {
        "sampler": model.default_plan.sampler,
        "guidance_scale": model.default_plan.guidance_scale,
        "steps": model.default_plan.steps,
    }
    if model.default_plan.sampler == "consistency" and model.default_plan.steps > 1:
        plan["t_mid"] = model.default_plan.t_mid
    if model.guide is not None:
        own["guide"] = model.guide.name
    return own | plan | {"nfe": scores.nfe} | spread(scores.fds) | {"fds": scores.fds} | quality(scores)


def cost_of(model: Model, nfe: int, seconds: tuple[float, float]) -> Row:
    """What a sample costs with so many evaluations; seconds of one in a batch, and alone."""
    cost = {"seconds_per_sample": seconds[0], "latency_seconds": seconds[1]}
    return cost | {"params": model.num_parameters, "esc": effective_sampling_compute(model, nfe)}


def effective_sampling_compute(model: Model, nfe: int) -> float:
    """Billions of parameters x evaluations of a sample (arXiv 2410.11081, figure 1).

    Args:
        model: sampled by its `default_plan`.
        nfe: network evaluations of a sample, the guide's included.
    """
    sizes = [model.num_parameters]
    if model.guide is not None and model.default_plan.guidance_scale != 1:
        sizes.append(model.guide.num_parameters)  # half of the evaluations are the guide's
    return sum(sizes) / len(sizes) / 1e9 * nfe


def quality(scores: Scores) -> Row:
    """Medians over the seeds of all metrics but the Frechet distance.

    Where it does not apply, label agreement is None, and another metric is left out.
    """
    values = {name: scores.of(name) for name in METRICS if name != SCORE}
    medians = {name: statistics.median(of_seeds) for name, of_seeds in values.items() if of_seeds}
    return {"label_agreement": None} | medians


def spread(fds: list[float]) -> Row:
    """Median and range of Frechet distances."""
    return {"fd": statistics.median(fds), "fd_range": [min(fds), max(fds)]}


def fd_ratio(student: Row, teacher: Row | None) -> float | None:
    """Of their distances by one judge; None without a reference teacher, or where its distance is 0."""
    return None if teacher is None or teacher["fd"] == 0 else float(student["fd"] / teacher["fd"])


def cost_ratios(student: Row, teacher: Row | None) -> Row:
    """Ratios to the reference teacher, None without one."""
    if teacher is None:
        return dict.fromkeys(("speedup", "latency_speedup", "esc_ratio"))
    return {
        "speedup": teacher["seconds_per_sample"] / student["seconds_per_sample"],
        "latency_speedup": teacher["latency_seconds"] / student["latency_seconds"],
        "esc_ratio": student["esc"] / teacher["esc"],
    }
