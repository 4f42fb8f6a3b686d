"""`study terms`: each term of sCD with score distillation left out or changed in turn, at equal training compute."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from trigflow.data import Dataset, load_data
from trigflow.evaluation.real import default_judges
from trigflow.objectives import new_objective
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, to_json
from trigflow.system.errors import UserError
from trigflow.tools.plan import dry_run_step
from trigflow.tools.studies.compute import forwards, forwards_per_image, sample_evaluations, scaled_to
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.given import check_given, cost_from_card
from trigflow.tools.studies.outcome import Outcome
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.terms_outcome import ALL, RowCost, outcome
from trigflow.tools.studies.trained import Pair, Row, Runs, TrainingSettings, check_feature_name


def with_objective(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """A recipe with another objective, and of its options, optimisers and initial weights those which that has."""
    own = new_objective(Component(name))
    known = {one.name for one in fields(own)}  # type: ignore[arg-type]
    options = {**recipe.objective.options, **changes}
    return replace(
        recipe,
        objective=Component(name, {key: value for key, value in options.items() if key in known}),
        optimizers={net: config for net, config in recipe.optimizers.items() if net in own.trains},
        inits={net: source for net, source in recipe.inits.items() if net in own.trains},
    )


def scd_alone(recipe: Recipe) -> Recipe:
    """sCD with the settings of its term: the student's optimiser, which now updates it in every step."""
    net = replace(recipe.optimizer_of("net"), update_period=1)
    return with_objective(replace(recipe, optimizers={"net": net}), "scd")


def _vsd(**changes: Any) -> Callable[[Recipe], Recipe]:
    return partial(with_objective, name="scd_vsd", **changes)


# Row -> its recipe from that of all terms. The usual noise levels are the objective's own.
ROWS: dict[str, Callable[[Recipe], Recipe]] = {
    ALL: _vsd(),
    "without sCD": partial(with_objective, name="vsd"),
    "without the second step": _vsd(second_share=0.0),
    "without score distillation": scd_alone,
    "usual noise levels": _vsd(vsd_P_mean=0.4, vsd_P_std=2.0, fake_P_mean=-0.8, fake_P_std=1.6),
    "weighting vsd": _vsd(weighting="vsd"),
    "weighting sid": _vsd(weighting="sid"),
}


@dataclass(frozen=True)
class Terms(TrainingSettings):
    """Each term of scd_vsd left out or changed, at equal training compute: quality by each judge, and cost. Takes data.

    Args: see `TrainingSettings`, and
        teacher: of all students: a shipped model, or a run's folder (default: the shipped {data}-teacher).
        share: of the teacher's training compute, for each row (default: the forward passes of the recipe).
    """

    name: ClassVar[str] = "terms"
    teacher: str | None = None
    share: float | None = None

    @property
    def _teacher(self) -> str:
        return f"{self.data}-teacher" if self.teacher is None else self.teacher

    def _pair(self) -> Pair:
        return Pair(self.data, method="scd-vsd").changed(self.overrides)

    def plan(self) -> dict[str, Any]:
        if self.share is not None and self.share <= 0:
            raise UserError(f"share {self.share:g}: give a number above 0")
        check_feature_name(self.features)
        pair = self._pair()
        found, recipe = pair.check(), pair.student_recipe(0, Path(self._teacher))
        rows = {label: to_json(change(recipe).objective) for label, change in ROWS.items()}
        return {**found, "rows": rows, **check_given(self._teacher, recipe, self.overrides)}

    def measure(self, bench: StudyContext) -> Outcome:
        pair = self._pair()
        recipe = pair.student_recipe(0, Path(self._teacher))
        dataset = load_data(recipe.data, recipe.precond.sigma_data)
        judges = default_judges(dataset) if self.features is None else (self.features,)
        runs = Runs(bench, self.num, judges)
        teacher = runs.add_given(self._teacher, pair)
        runs.do()
        rows = [
            Row(label, [teacher] * self.seeds, self._students(runs, f"row{number}", pair, teacher))
            for number, label in enumerate(ROWS)
        ]
        budget, nfe = self._budget(runs, rows[0])
        for row in rows:
            for name in row.students:
                own, _ = runs.students[name]
                runs.students[name] = (scaled_to(ROWS[row.label](own), budget, nfe), teacher)
        runs.do()
        costs = [_cost(runs, row, dataset) for row in rows]
        return outcome(runs, rows, costs, budget)

    def _students(self, runs: Runs, name: str, pair: Pair, teacher: str) -> list[str]:
        return [runs.add_student(name, pair, seed, teacher) for seed in range(self.seeds)]

    def _budget(self, runs: Runs, row: Row) -> tuple[float, int]:
        """Forward passes of each training, and evaluations of the teacher for a sample that it is trained on."""
        nfe, model = sample_evaluations(runs, row.students[0]), runs.model(row.teachers[0])
        assert model
        if self.share is None:
            return forwards(runs.students[row.students[0]][0], nfe), nfe
        return self.share * cost_from_card(model).forwards, nfe


def _cost(runs: Runs, row: Row, dataset: Dataset) -> RowCost:
    """Of a row's trainings: the seconds are measured, all else is counted."""
    recipe = runs.students[row.students[0]][0]
    memory = runs.bench.folder.cell(f"memory-{row.students[0]}", partial(_memory, recipe, dataset))
    seconds = [_speed(runs, name)["seconds_per_thousand"] for name in row.students]
    return RowCost(
        images=recipe.train.total_nimg,
        forwards_per_image=forwards_per_image(recipe),
        seconds=[one for one in seconds if one is not None],
        parameters=memory["parameters"],
        memory=memory["bytes"],
    )


def _memory(recipe: Recipe, dataset: Dataset) -> Cell:
    """Trained parameters, and the bytes that stay in memory between steps."""
    step = dry_run_step(recipe, dataset.data_shape, dataset.num_classes)
    weights = step.weights + step.teacher + step.averages
    lasting = {"weights": weights, "gradients": step.gradients, "optimizer": step.optimizer}
    return {"parameters": step.parameters, "bytes": lasting}


def _speed(runs: Runs, name: str) -> Cell:
    """Seconds for 1,000 images of a training, the median over the lines of its metrics.jsonl; None without any."""

    def measure() -> Cell:
        path = runs.bench.folder.run_path(name) / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        rates = [line["images_per_second"] for line in lines]
        return {"seconds_per_thousand": statistics.median(1000 / rate for rate in rates) if rates else None}

    return runs.bench.folder.cell(f"speed-{name}", measure)
