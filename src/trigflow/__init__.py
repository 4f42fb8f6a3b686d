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
    from trigflow import dual, networks, objectives
    from trigflow.core import flow, oracles, samplers
    from trigflow.core.precond import TrigFlowPrecond
    from trigflow.core.randomness import SampleRandom
    from trigflow.models.model import Model, load

__all__ = [
    "Model",
    "SampleRandom",
    "TrigFlowPrecond",
    "UserError",
    "__version__",
    "dual",
    "flow",
    "load",
    "networks",
    "objectives",
    "oracles",
    "samplers",
]

# The file of each name; a module is named by itself.
_HOME = {
    "Model": "models.model",
    "SampleRandom": "core.randomness",
    "TrigFlowPrecond": "core.precond",
    "dual": "dual",
    "flow": "core.flow",
    "load": "models.model",
    "networks": "networks",
    "objectives": "objectives",
    "oracles": "core.oracles",
    "samplers": "core.samplers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trigflow' has no attribute '{name}'")
    module = importlib.import_module(f"trigflow.{_HOME[name]}")
    return module if _HOME[name].split(".")[-1] == name else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
