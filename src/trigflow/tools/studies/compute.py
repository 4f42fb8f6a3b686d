"""`study compute`: how good a student is after a share of its teacher's training compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trigflow.evaluation.figures import in_steps
from trigflow.objectives import OBJECTIVES, Objective
from trigflow.objectives.batch import guidance_scale
from trigflow.objectives.warmup import scaled_warmup
from trigflow.recipes.schema import Recipe
from trigflow.system.config import build
from trigflow.system.errors import UserError
from trigflow.tools.studies.outcome import (
    COLOURS,
    Outcome,
    Plot,
    Table,
    add_legend,
    add_line,
    new_plot,
    plain_ticks,
    show,
    stored,
)
from trigflow.tools.studies.scaling import ratio
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.trained import Pair, Runs, check_feature_name
from trigflow.training.synthetic import evaluations_per_sample

SHARES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
# Samples of the teacher are part of a student's compute: 10,000 would be a third of a digits teacher's training.
SETTINGS = {
    "digits": Pair("digits", student=("train.synthetic=0",)),
    "mixture2d": Pair("mixture2d", student=("sampling.flow_map_num=0",)),
}
EXPECTATION = (
    "in 2 steps a student is comparable to its teacher with less than 20 % of the teacher's training compute, and good "
    "after 20,000 iterations already; a step costs about twice the teacher's."
)


@dataclass(frozen=True)
class Compute:
    """Students of different shares of the teacher's training compute, beside the teacher: data in.

    Args:
        data: prefix of the recipes {data}-teacher and {data}-scd.
        overrides: `key=value` for both recipes, `teacher.key=value`, `student.key=value`.
        shares: of the teacher's training compute, counted in forward passes.
        features: as in `load_features` (default: the shipped classifier for digits and MNIST, else pixels).
        num: samples of each score.
        seeds: trainings of each share.
    """

    name: ClassVar[str] = "compute"
    data: str
    overrides: tuple[str, ...] = ()
    shares: tuple[float, ...] = SHARES
    features: str | None = None
    num: int = 5000
    seeds: int = 3

    def _pair(self) -> Pair:
        return SETTINGS.get(self.data, Pair(self.data)).changed(self.overrides)

    def plan(self) -> dict[str, Any]:
        if len({_share_name(share) for share in self.shares}) < len(self.shares) or min(self.shares) <= 0:
            raise UserError(f"shares {list(self.shares)}: give numbers above 0, each of them once")
        check_feature_name(self.features)
        return self._pair().check()

    def measure(self, bench: StudyContext) -> Outcome:
        pair, runs = self._pair(), Runs(bench, self.num, self.features)
        teachers = [runs.add_teacher("whole", pair, seed) for seed in range(self.seeds)]
        runs.do()
        students: list[list[str]] = []
        for share in self.shares:
            students.append([])
            for seed, teacher in enumerate(teachers):
                full = runs.add_student(_share_name(share), pair, seed, teacher)
                recipe = scaled_to(
                    runs.students[full][0], runs.teachers[teacher], share, self._nfe(runs, full)
                )
                runs.students[full] = (recipe, teacher)
                students[-1].append(full)
        runs.do()
        return _outcome(runs, self.shares, teachers, students, self.num)

    def _nfe(self, runs: Runs, student: str) -> int:
        """Evaluations of the teacher for a sample that a student is trained on."""
        recipe, teacher = runs.students[student]
        model = runs.model(teacher) if recipe.train.synthetic else None
        scale = guidance_scale(_objective(recipe))
        return evaluations_per_sample(model, scale, recipe.guide is not None) if model else 0


def _share_name(share: float) -> str:
    """Of its runs: two shares of one name would be one training."""
    return f"share{share:g}"


def forwards(recipe: Recipe, nfe: int = 0) -> float:
    """Forward passes that a training costs, `nfe` for each sample of its teacher that it is trained on."""
    return recipe.train.total_nimg * _objective(recipe).forwards_per_image + nfe * recipe.train.synthetic


def _objective(recipe: Recipe) -> Objective:
    objective: Objective = build(recipe.objective, OBJECTIVES, "objective")
    return objective


def scaled_to(student: Recipe, teacher: Recipe, share: float, nfe: int = 0) -> Recipe:
    """A student's recipe shortened (or lengthened) to a share of the teacher's forward passes, to a whole batch.

    Warm-up, ramp-up, half-life and an inverse-sqrt decay are scaled with it; the other decays follow the length.

    Args:
        student, teacher: recipes of one network.
        share: > 0.
        nfe: of the teacher for a sample, where the student is trained on its samples.

    Raises:
        UserError: the samples alone cost more than the share.
    """
    left = share * forwards(teacher) - nfe * student.train.synthetic
    batch, objective = student.train.batch, _objective(student)
    total = batch * max(1, round(left / objective.forwards_per_image / batch))
    if left <= 0:
        raise UserError(
            f"a share of {share:g} is less than the {student.train.synthetic} samples of the teacher cost: "
            "give student.train.synthetic=0, or larger --shares"
        )
    factor = total / student.train.total_nimg
    options = dict(student.objective.options)
    if warmup := getattr(objective, "warmup", 0):  # also where the recipe leaves it to the objective
        options["warmup"] = scaled_warmup(warmup, factor)
    optimizer, ema = student.optimizer, student.ema
    schedule = optimizer.schedule
    if "t_ref" in schedule.options:
        schedule = replace(
            schedule, options={**schedule.options, "t_ref": schedule.options["t_ref"] * factor}
        )
    return replace(
        student,
        objective=replace(student.objective, options=options),
        train=replace(student.train, total_nimg=total),
        optimizer=replace(optimizer, schedule=schedule, rampup_nimg=round(optimizer.rampup_nimg * factor)),
        ema=replace(ema, halflife_nimg=max(1, round(ema.halflife_nimg * factor))),
    )


def _outcome(
    runs: Runs, shares: Sequence[float], teachers: list[str], students: list[list[str]], num: int
) -> Outcome:
    name = runs.score_name()
    best = [runs.score(teacher) for teacher in teachers]
    scores = {steps: [[runs.score(one, steps) for one in group] for group in students] for steps in (1, 2)}
    rows = [["share of the teacher's training", "images", "1 step", "ratio", "2 steps", "ratio"]]
    rows.append(
        ["teacher", f"{runs.teachers[teachers[0]].train.total_nimg:,}", show(best), "1", show(best), "1"]
    )
    for place, share in enumerate(shares):
        row = [f"{share:.0%}", f"{runs.students[students[place][0]][0].train.total_nimg:,}"]
        for steps in (1, 2):
            row += [show(scores[steps][place]), show(ratio(scores[steps][place], best), "{:.2f}")]
        rows.append(row)
    ratios = {steps: [ratio(group, best) for group in groups] for steps, groups in scores.items()}
    texts = [f"{share:.0%}: {show(group, '{:.2f}')}" for share, group in zip(shares, ratios[2], strict=True)]
    return Outcome(
        title=f"Training compute: {runs.students[students[0][0]][0].name}",
        expectation=EXPECTATION,
        finding=f"{name} in 2 steps over the teacher's, by share: {'; '.join(texts)}.",
        tables=[Table(f"{name} after a share of the teacher's training compute", rows)],
        plots={"compute.png": _plot(shares, scores, best, name)},
        notes=[
            f"{name} of {num} samples; median over {len(teachers)} seeds (range), the ratio within each seed.",
            "Compute is counted in forward passes: 3 for an image of diffusion training, 5 for one of sCD (6 from a"
            " guided teacher), and each evaluation of the teacher for the samples of train.synthetic. Length, decay,"
            " warm-up and half-life of the student's recipe are scaled to the share; the teacher's own training, where"
            " the student's weights come from, is not counted.",
        ],
        numbers={
            "score": name,
            "shares": list(shares),
            "teacher": [stored(one) for one in best],
            "scores": {
                str(n): [[stored(one) for one in group] for group in groups] for n, groups in scores.items()
            },
            "cells": runs.cells(),
        },
    )


def _plot(
    shares: Sequence[float], scores: dict[int, list[list[float]]], best: list[float], name: str
) -> Plot:
    figure, axes = new_plot("share of the teacher's training compute", name)
    for steps, colour in ((1, COLOURS[1]), (2, COLOURS[2])):
        add_line(axes, shares, scores[steps], f"student, {in_steps(steps)}", colour)
    add_line(axes, [1.0], [best], "teacher", COLOURS[0])
    plain_ticks(axes, shares)
    add_legend(figure)
    return Plot(f"{name} against training compute, median and range over the seeds", figure)
