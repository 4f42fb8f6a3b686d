"""Memory, FLOPs and days of a training, estimated before it is started, without computing or reading data.

A dry run of one step on fake tensors gives its memory at any batch (`dry_run`), `memory` distributes it over GPUs, and
`report` says whether it fits and what to change.
"""

from trigflow.tools.plan.dry_run import Footprint, MemoryTimeline, dry_run_step
from trigflow.tools.plan.memory import Layout, Need
from trigflow.tools.plan.planning import Machine, TrainingPlan, make_plan
from trigflow.tools.plan.report import report
from trigflow.tools.plan.shapes import SHAPES, sample_shape

__all__ = [
    "SHAPES",
    "Footprint",
    "Layout",
    "Machine",
    "MemoryTimeline",
    "Need",
    "TrainingPlan",
    "dry_run_step",
    "make_plan",
    "report",
    "sample_shape",
]
