"""The rows of a report: what was measured of a model, and of a student beside the reference teacher."""

from __future__ import annotations

import statistics
from typing import Any

from trigflow.evaluation.measure import Contender, Scores

Row = dict[str, Any]
METHODS = {"scd": "sCD", "sct": "sCT"}


def row_of(one: Contender, scores: Scores, seconds: tuple[float, float], diversity_name: str) -> Row:
    """Of a model sampled in one way; seconds of a sample in a batch, and alone."""
    own = {"name": one.model.name, "method": METHODS.get(one.model.card.objective, one.model.card.objective)}
    plan: Row = {
        "sampler": one.plan.sampler,
        "guidance_scale": one.plan.guidance_scale,
        "steps": one.plan.steps,
    }
    if one.plan.sampler == "consistency" and one.plan.steps > 1:
        plan["t_mid"] = one.plan.t_mid
    figures = spread(scores.fds) | {"fds": scores.fds} | quality(scores, diversity_name)
    cost = {"seconds_per_sample": seconds[0], "latency_seconds": seconds[1]}
    cost |= {"params": one.model.num_parameters, "esc": one.esc(scores.nfe)}
    if one.model.guide is not None:
        own["guide"] = one.model.guide.name
    return own | plan | {"nfe": scores.nfe} | figures | cost


def quality(scores: Scores, diversity_name: str) -> Row:
    """All but the Frechet distances, medians over the seeds."""
    agreement = statistics.median(scores.agreements) if scores.agreements else None
    figures: Row = {"label_agreement": agreement, "kernel_distance": statistics.median(scores.kernels)}
    if scores.neighbours:
        figures["precision"] = statistics.median(one.precision for one in scores.neighbours)
        figures["recall"] = statistics.median(one.recall for one in scores.neighbours)
    if scores.diversities:
        figures[diversity_name] = statistics.median(scores.diversities)
    if scores.sliced:
        figures["sliced_wasserstein"] = statistics.median(scores.sliced)
    return figures


def spread(fds: list[float]) -> Row:
    """Median and range of Frechet distances."""
    return {"fd": statistics.median(fds), "fd_range": [min(fds), max(fds)]}


def beside(student: Row, teacher: Row | None) -> Row:
    """Ratios to the reference teacher, None without one."""
    if teacher is None:
        return dict.fromkeys(("fd_ratio", "speedup", "latency_speedup", "esc_ratio"))
    return {
        "fd_ratio": student["fd"] / teacher["fd"] if teacher["fd"] > 0 else None,
        "speedup": teacher["seconds_per_sample"] / student["seconds_per_sample"],
        "latency_speedup": teacher["latency_seconds"] / student["latency_seconds"],
        "esc_ratio": student["esc"] / teacher["esc"],
    }
