"""Studies: one command each. A new one is a file here and a line in the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trigflow.tools.studies.ablation import Ablation
from trigflow.tools.studies.compute import Compute
from trigflow.tools.studies.scaling import Scaling
from trigflow.tools.studies.speed import Speed
from trigflow.tools.studies.steps import Steps
from trigflow.tools.studies.study import Study, carry_out
from trigflow.tools.studies.terms import Terms

STUDIES: dict[str, Callable[..., Any]] = {
    study.name: study for study in (Steps, Speed, Scaling, Ablation, Compute, Terms)
}

__all__ = ["STUDIES", "Study", "carry_out"]
