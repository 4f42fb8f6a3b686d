"""`study compute`: how good a student is after a share of its teacher's training compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from trigflow.objectives import new_objective
from trigflow.objectives.cost import mean_forwards
from trigflow.objectives.warmup import scaled_warmup
from trigflow.recipes.schema import OptimizerConfig, Recipe
from trigflow.system.errors import UserError
from trigflow.tools.studies.given import Cost, check_given, cost_from_card
from trigflow.tools.studies.outcome import Line, Outcome, comparison, ratio, score_plot, show, stored
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.trained import COLUMNS, Pair, Row, Runs, TrainingSettings, check_feature_name
from trigflow.training.synthetic import evaluations_per_sample

SHARES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# (data, method) -> overrides of the student. Samples of the teacher are part of its compute: 10,000 would be a third
# of a digits teacher's training.
STUDENTS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("digits", "scd"): ("train.synthetic=0",),
    ("mixture2d", "scd"): ("sampling.flow_map_num=0",),
}
EXPECTATION = (
    "in 2 steps a student is comparable to its teacher with less than 20 % of the teacher's training compute, and good "
    "after 20,000 iterations already; a step costs about twice the teacher's."
)


@dataclass(frozen=True)
class Compute(TrainingSettings):
    """Students of different shares of the teacher's training compute, beside the teacher. Takes data.

    Args: see `TrainingSettings`, and
        method: how the students are distilled: their recipe is {data}-{method}.
        teacher: whose students are trained, all of the same: a shipped model, or a run's folder (default: one
            is trained for each seed).
        shares: of the teacher's training compute, counted in forward passes.
    """

    name: ClassVar[str] = "compute"
    method: str = "scd"
    teacher: str | None = None
    shares: tuple[float, ...] = SHARES

    def _pair(self) -> Pair:
        student = STUDENTS.get((self.data, self.method), ())
        return Pair(self.data, student=student, method=self.method).changed(self.overrides)

    def plan(self) -> dict[str, Any]:
        if len({_share_name(share) for share in self.shares}) < len(self.shares) or min(self.shares) <= 0:
            raise UserError(f"shares {list(self.shares)}: give numbers above 0, each of them once")
        check_feature_name(self.features)
        pair = self._pair()
        found = pair.check()
        if self.teacher is None:
            return found
        return found | check_given(self.teacher, pair.student_recipe(0, Path(self.teacher)), self.overrides)

    def measure(self, bench: StudyContext) -> Outcome:
        pair, runs = self._pair(), self.runs(bench)
        if self.teacher is None:
            teachers = [runs.add_teacher("whole", pair, seed) for seed in range(self.seeds)]
        else:
            teachers = [runs.add_given(self.teacher, pair)] * self.seeds
        runs.do()
        whole = _cost(runs, teachers[0])
        rows = [Row(f"{share:.0%}", teachers, []) for share in self.shares]
        for share, row in zip(self.shares, rows, strict=True):
            for seed, teacher in enumerate(teachers):
                full = runs.add_student(_share_name(share), pair, seed, teacher)
                recipe = scaled_to(
                    runs.students[full][0], share * whole.forwards, sample_evaluations(runs, full)
                )
                runs.students[full] = (recipe, teacher)
                row.students.append(full)
        runs.do()
        return _outcome(runs, self.shares, rows, whole)


def _cost(runs: Runs, teacher: str) -> Cost:
    """Of the teacher's training, the same for all seeds."""
    if recipe := runs.teachers.get(teacher):
        return Cost(recipe.train.total_nimg, forwards(recipe))
    model = runs.model(teacher)
    assert model
    return cost_from_card(model)


def sample_evaluations(runs: Runs, student: str) -> int:
    """Evaluations of the teacher for a sample that a student is trained on; 0 where it is trained on the data."""
    recipe, teacher = runs.students[student]
    model = runs.model(teacher) if recipe.train.synthetic else None
    scale = new_objective(recipe.objective).guidance_scale
    return evaluations_per_sample(model, scale, recipe.guide is not None) if model else 0


def _share_name(share: float) -> str:
    """Of its runs: two shares of one name would be one training."""
    return f"share{share:g}"


def forwards(recipe: Recipe, nfe: int = 0) -> float:
    """Forward passes that a training costs, `nfe` for each sample of its teacher that it is trained on."""
    return recipe.train.total_nimg * forwards_per_image(recipe) + nfe * recipe.train.synthetic


def forwards_per_image(recipe: Recipe) -> float:
    """Forward passes that an image of a training costs, the mean over its steps."""
    objective = new_objective(recipe.objective)
    return mean_forwards(objective, recipe.update_periods(objective.trains))


def scaled_to(student: Recipe, budget: float, nfe: int = 0) -> Recipe:
    """A student's recipe shortened (or lengthened) to so many forward passes, to a whole batch.

    Warm-up, ramp-up, half-life and an inverse-sqrt decay are scaled with it; the other decays follow the length.

    Args:
        student: its recipe.
        budget: forward passes of a network of its size, > 0.
        nfe: of the teacher for a sample, where the student is trained on its samples.

    Raises:
        UserError: the samples alone cost more than that.
    """
    left = budget - nfe * student.train.synthetic
    batch, objective = student.train.batch, new_objective(student.objective)
    total = batch * max(1, round(left / forwards_per_image(student) / batch))
    if left <= 0:
        raise UserError(
            f"{budget:,.0f} forward passes are less than the {student.train.synthetic} samples of the teacher cost: "
            "give student.train.synthetic=0, or a larger share"
        )
    factor = total / student.train.total_nimg
    options = dict(student.objective.options)
    if warmup := getattr(objective, "warmup", 0):  # also where the recipe leaves it to the objective
        options["warmup"] = scaled_warmup(warmup, factor)
    ema, optimizers = student.ema, student.optimizers
    return replace(
        student,
        objective=replace(student.objective, options=options),
        train=replace(student.train, total_nimg=total),
        optimizer=_scaled_optimizer(student.optimizer, factor),
        optimizers={name: _scaled_optimizer(config, factor) for name, config in optimizers.items()},
        ema=replace(ema, halflife_nimg=max(1, round(ema.halflife_nimg * factor))),
    )


def _scaled_optimizer(config: OptimizerConfig, factor: float) -> OptimizerConfig:
    """With a ramp-up and an inverse-sqrt decay `factor` times as long."""
    schedule = config.schedule
    if "t_ref" in schedule.options:
        options = {**schedule.options, "t_ref": schedule.options["t_ref"] * factor}
        schedule = replace(schedule, options=options)
    return replace(config, schedule=schedule, rampup_nimg=round(config.rampup_nimg * factor))


def _outcome(runs: Runs, shares: Sequence[float], rows: Sequence[Row], whole: Cost) -> Outcome:
    name, scores = runs.score_name(), runs.scores(rows)
    best = scores["teacher"][0]
    ratios = {column: [ratio(group, best) for group in scores[column]] for column in COLUMNS}
    recipes = [runs.students[row.students[0]][0] for row in rows]
    firsts = [[row.label, f"{recipe.train.total_nimg:,}"] for row, recipe in zip(rows, recipes, strict=True)]
    head = ["share of the teacher's training", "images"]
    table = comparison(
        f"{name} after a share of the teacher's training compute", head, firsts, scores, ratios
    )
    table.rows.insert(1, ["teacher", f"{whole.images:,}", *(show(best), "1") * len(COLUMNS)])
    texts = [
        f"{row.label}: {show(group, '{:.2f}')}" for row, group in zip(rows, ratios["2 steps"], strict=True)
    ]
    lines = [Line("teacher", [1.0], [best])]
    lines += [Line(f"student, {column}", shares, scores[column]) for column in COLUMNS]
    return Outcome(
        title=f"Training compute: {recipes[0].name}",
        expectation=EXPECTATION,
        finding=f"{name} in 2 steps over the teacher's, by share: {'; '.join(texts)}.",
        tables=[table],
        plots={"compute.png": score_plot(name, "share of the teacher's training compute", lines, shares)},
        notes=[
            runs.note(len(best)),
            f"Compute is counted in forward passes: {whole.forwards / whole.images:.3g} for an image of the teacher's"
            f" training, {forwards_per_image(recipes[0]):.3g} for one of {recipes[0].name}, and each evaluation of the"
            " teacher for the samples of train.synthetic. Length, decay, warm-up and half-life of the student's recipe"
            " are scaled to the share; the teacher's own training, where the student's weights come from, is not"
            " counted.",
            *(f"Teacher: {model}, whose card tells its training." for model, _ in runs.given.values()),
        ],
        numbers={
            "score": name,
            "shares": list(shares),
            "teacher": [stored(one) for one in best],
            "scores": {
                str(n): [[stored(one) for one in group] for group in scores[column]]
                for column, n in COLUMNS.items()
            },
            "cells": runs.cells(),
        },
    )
