"""`trigflow list`: the shipped models, the recipes and their parts."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial

from trigflow.commands.command import Command

KINDS = (
    *("models", "recipes", "datasets", "networks", "objectives", "time_distributions", "samplers"),
    *("features", "metrics", "studies"),
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS, help="list only these (default: everything)")


def _describe(thing: object) -> str:
    """A text itself, or the first line of the docstring of a function or class."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, partial):
        fixed = ", ".join(f"{name}={value}" for name, value in thing.keywords.items())
        return f"{thing.func.__name__} with {fixed}: {_describe(thing.func)}"
    return (thing.__doc__ or "").strip().split("\n")[0]


def _tables() -> dict[str, Mapping[str, object]]:
    from trigflow import data, networks, objectives, recipes
    from trigflow.core import samplers, time_distributions
    from trigflow.evaluation import metrics
    from trigflow.models import shipped
    from trigflow.tools import studies

    return {
        "models": shipped.SHIPPED,
        "recipes": recipes.RECIPES,
        "datasets": data.DATASETS,
        "networks": networks.NETWORKS,
        "objectives": objectives.OBJECTIVES,
        "time_distributions": time_distributions.TIME_DISTRIBUTIONS,
        "samplers": {name: sampler.function for name, sampler in samplers.SAMPLERS.items()},
        "features": metrics.FEATURES
        | {f"{name}=FILE": f"{one.summary} ({one.file})" for name, one in metrics.PUBLISHED.items()},
        "metrics": {name: metric.compute for name, metric in metrics.METRICS.items()},
        "studies": studies.STUDIES,
    }


def _run(args: argparse.Namespace) -> int:
    for kind, table in _tables().items():
        if args.kind in (None, kind):
            print(f"{kind}:")
            width = max(20, *map(len, table))
            for name, thing in table.items():
                print(f"  {name:<{width}} {_describe(thing)}".rstrip())
    return 0


COMMAND = Command(
    name="list",
    summary="list the shipped models, the recipes, and the parts that recipes are made of",
    example="trigflow list recipes",
    add_arguments=_add_arguments,
    run=_run,
)
