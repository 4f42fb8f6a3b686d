"""What a training needs before it is started: memory, arithmetic, days. Nothing is computed, no data is read.

A step of the training is run dry, on tensors without numbers (`dry_run`), which tells its memory at any batch;
layouts over GPUs share it out (`memory`); `report` says whether it fits and what to change.
"""

from trigflow.tools.plan.dry_run import Course, Footprint, dry_run_step
from trigflow.tools.plan.memory import Layout, Need
from trigflow.tools.plan.planning import Machine, TrainingPlan, make_plan
from trigflow.tools.plan.report import report
from trigflow.tools.plan.shapes import SHAPES, sample_shape

__all__ = [
    "SHAPES",
    "Course",
    "Footprint",
    "Layout",
    "Machine",
    "Need",
    "TrainingPlan",
    "dry_run_step",
    "make_plan",
    "report",
    "sample_shape",
]
