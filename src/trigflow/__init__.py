"""Continuous-time consistency models (sCM, arXiv:2410.11081): train, distil, sample in one or two steps.

>>> import trigflow
>>> images = trigflow.load("digits").sample(16, steps=2, seed=0)  # (16, 1, 8, 8) uint8

For a training loop of your own take the parts: `trigflow.flow` (the mathematics), `trigflow.objectives`,
`trigflow.samplers`, `trigflow.networks`, `trigflow.dual` (the derivative). They are imported when they are first
touched, so that the command answers `--help` without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from trigflow.system.errors import UserError
from trigflow.system.version import __version__

if TYPE_CHECKING:
    from trigflow import dual, networks, objectives, recipes
    from trigflow.core import flow, guidance, oracles, samplers, schedules
    from trigflow.core.precond import TrigFlowPrecond
    from trigflow.core.randomness import SampleRandom
    from trigflow.data import load_data
    from trigflow.evaluation import metrics
    from trigflow.evaluation.evaluate import evaluate
    from trigflow.models.model import Model, load
    from trigflow.objectives import SCM, Diffusion
    from trigflow.recipes.schema import Recipe
    from trigflow.training import ema
    from trigflow.training.loop import train
    from trigflow.training.run_folder import reconstruct

__all__ = [
    "SCM",
    "Diffusion",
    "Model",
    "Recipe",
    "SampleRandom",
    "TrigFlowPrecond",
    "UserError",
    "__version__",
    "dual",
    "ema",
    "evaluate",
    "flow",
    "guidance",
    "load",
    "load_data",
    "metrics",
    "networks",
    "objectives",
    "oracles",
    "recipes",
    "reconstruct",
    "samplers",
    "schedules",
    "train",
]

# The module of each name, or the module and the attribute in it; imported when the name is first used.
_HOME = {
    "Diffusion": "objectives:Diffusion",
    "Model": "models.model:Model",
    "Recipe": "recipes.schema:Recipe",
    "SCM": "objectives:SCM",
    "SampleRandom": "core.randomness:SampleRandom",
    "TrigFlowPrecond": "core.precond:TrigFlowPrecond",
    "dual": "dual",
    "ema": "training.ema",
    "evaluate": "evaluation.evaluate:evaluate",
    "flow": "core.flow",
    "guidance": "core.guidance",
    "load": "models.model:load",
    "load_data": "data:load_data",
    "metrics": "evaluation.metrics",
    "networks": "networks",
    "objectives": "objectives",
    "oracles": "core.oracles",
    "recipes": "recipes",
    "reconstruct": "training.run_folder:reconstruct",
    "samplers": "core.samplers",
    "schedules": "core.schedules",
    "train": "training.loop:train",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trigflow' has no attribute '{name}'")
    module_name, _, attribute = _HOME[name].partition(":")
    module = importlib.import_module(f"trigflow.{module_name}")
    return getattr(module, attribute) if attribute else module


def __dir__() -> list[str]:
    return __all__
