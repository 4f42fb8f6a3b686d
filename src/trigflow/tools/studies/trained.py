"""The common part of the studies that train: settings, recipes with overrides, trainings and their scores."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from trigflow import recipes
from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.measure import Scores, Trial, new_trial, score_all
from trigflow.evaluation.metrics import METRICS, load_features
from trigflow.evaluation.real import default_features, real_data
from trigflow.models.model import Model, load
from trigflow.objectives import OBJECTIVES, new_objective
from trigflow.recipes import RECIPES
from trigflow.recipes.schema import Recipe
from trigflow.system.config import Component, to_json
from trigflow.system.errors import Diverged, UserError, did_you_mean, one_of
from trigflow.system.files import write_json
from trigflow.tools.studies.folder import Cell, StudyFolder
from trigflow.tools.studies.study import StudyContext
from trigflow.training.loop import train

STEPS = (1, 2)
BATCH = 250
# Without image grids and TensorBoard events.
QUIET = ("sampling.grid_nimg=0", "train.tensorboard=false")
CURVES = ("nimg", "loss", "tangent_norm", "grad_norm")  # of metrics.jsonl, kept with the scores
COLUMNS = {in_steps(n): n for n in STEPS}  # of the tables: "1 step", "2 steps"
OURS = ("teacher", "train.seed", "name")  # keys that a study sets itself


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a study that trains.

    Args:
        data: prefix of the recipes {data}-teacher and {data}-scd, or of another method.
        overrides: `key=value` for both recipes, `teacher.key=value`, `student.key=value`.
        features: as in `load_features` (default: the shipped classifier for digits and MNIST, else pixels).
        num: samples of each score.
        seeds: trainings of each setting.
    """

    data: str
    overrides: tuple[str, ...] = ()
    features: str | None = None
    num: int = 5000
    seeds: int = 3

    def runs(self, bench: StudyContext) -> Runs:
        """No trainings yet."""
        return Runs(bench, self.num, () if self.features is None else (self.features,))


@dataclass(frozen=True)
class Pair:
    """The recipes of a teacher and its student, as overrides of those of a data set.

    Args:
        data: prefix of the recipes {data}-teacher and {data}-{method}.
        teacher, student: overrides `key=value`; the last one of a key counts.
        method: how the student is distilled, see `methods_of`.
    """

    data: str
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()
    method: str = "scd"

    def changed(self, overrides: Sequence[str]) -> Pair:
        """With further overrides of both recipes, or of one: `teacher.key=value`, `student.key=value`.

        Raises:
            UserError: a key that the study sets itself.
        """
        teacher = [one.removeprefix("teacher.") for one in overrides if not one.startswith("student.")]
        student = [one.removeprefix("student.") for one in overrides if not one.startswith("teacher.")]
        for one in (*teacher, *student):
            key = one.partition("=")[0]
            if key in OURS:
                raise UserError(f"'{one}': the study sets {key} itself; remove it")
        return replace(self, teacher=(*self.teacher, *teacher), student=(*self.student, *student))

    def teacher_recipe(self, seed: int) -> Recipe:
        """Raises a UserError for an unknown data set or key."""
        return recipes.get(known(self.data, "teacher"), [*QUIET, *self.teacher, f"train.seed={seed}"])

    def student_recipe(self, seed: int, teacher: Path) -> Recipe:
        """Raises a UserError for an unknown data set, method or key."""
        own = [f"train.seed={seed}", f"teacher={json.dumps(str(teacher))}"]
        return recipes.get(known(self.data, self.method), [*QUIET, *self.student, *own])

    def check(self) -> dict[str, Any]:
        """Makes both recipes; returns the overrides and a digest of the recipes, as JSON data."""
        both = [to_json(self.teacher_recipe(0)), to_json(self.student_recipe(0, Path("teacher")))]
        digest = hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()[:32]
        return {"teacher": self.teacher, "student": self.student, "recipes": digest}


def known(data: str, role: str) -> str:
    """The name of a recipe.

    Args:
        data: prefix of the recipe.
        role: "teacher", or a method of `methods_of`.

    Raises:
        UserError: there is no such recipe.
    """
    trainable = [name.removesuffix("-scd") for name in RECIPES if name.endswith("-scd")]
    if data not in trainable:
        raise UserError(
            f"no recipes for data '{data}'{did_you_mean(data, trainable)}; a study that trains takes: "
            f"{', '.join(trainable)} (an override data=FILE changes the data itself)"
        )
    if role != "teacher":
        one_of("method", role, methods_of(data), f"data '{data}': ")
    return f"{data}-{role}"


def methods_of(data: str) -> list[str]:
    """The objectives that distil a teacher and have a recipe for the data, as it is named: "scd", "scd-vsd"."""
    distil = [name for name in OBJECTIVES if new_objective(Component(name)).needs_teacher]
    return [method for name in distil if f"{data}-{(method := name.replace('_', '-'))}" in RECIPES]


def check_feature_name(name: str | None) -> None:
    """Raises a UserError for features that do not exist, before anything is trained."""
    if name is not None:
        load_features(name)


@dataclass(frozen=True)
class TrainAndScore:
    """Trains a recipe, or resumes its training, and writes its scores as a cell. Divergence is a result, too.

    Args:
        name: of the run and its cell.
        recipe: what to train.
        folder: of the study.
        num: samples of each score.
        features: as in `load_features`, of one judge or several; none: the default for the data.
        device: where to compute.
    """

    name: str
    recipe: Recipe
    folder: StudyFolder
    num: int
    features: tuple[str, ...]
    device: str

    def __call__(self) -> None:
        run, start = self.folder.run_path(self.name), time.perf_counter()
        cell: Cell = {"run": self.name, "seed": self.recipe.train.seed, "diverged": None}
        try:
            train(self.recipe, run, resume=True, device=self.device, progress=False)
            cell |= scored_cell(load(run, self.device), self.recipe.data, self.num, self.features)
        except Diverged as failure:
            cell |= {"diverged": str(failure)}
        cell |= {"curves": curves(run), "seconds": time.perf_counter() - start}
        write_json(self.folder.cell_path(self.name), cell)


@dataclass(frozen=True)
class ScoreTeacher:
    """Writes the scores of a teacher that is there already as a cell.

    Args:
        name: of the cell.
        model: a shipped model, or a run's folder.
        data: the real data.
        folder, num, features, device: as in TrainAndScore.
    """

    name: str
    model: str
    data: Component
    folder: StudyFolder
    num: int
    features: tuple[str, ...]
    device: str

    def __call__(self) -> None:
        cell = scored_cell(load(self.model, self.device), self.data, self.num, self.features)
        write_json(self.folder.cell_path(self.name), {"model": self.model, "diverged": None, **cell})


def scored_cell(model: Model, data: Component, num: int, features: Sequence[str]) -> Cell:
    """The scores of a student in STEPS, or of a teacher by its card's sampler; of several judges in "judges"."""
    dataset = real_data(model, data)
    judges = [load_features(one, model.device) for one in features or (default_features(dataset),)]
    trial = new_trial(dataset, judges, num, 1, BATCH)
    ways = [model.with_plan(steps) for steps in (STEPS if model.is_student else (None,))]
    by_judge = [
        {str(way.default_plan.steps): score_cell(one) for way, one in zip(ways, scores, strict=True)}
        for scores in score_all(trial, ways, progress=False)
    ]
    cell = {
        "params": model.num_parameters,
        "nimg": model.card.nimg,
        "score": score_name(trial),
        "scores": by_judge[0],
    }
    if len(judges) > 1:
        names = [trial.name_of(judge) for judge in trial.judges]
        cell["judges"] = dict(zip(names, by_judge, strict=True))
    return cell


def score_name(trial: Trial) -> str:
    """The score that a study compares: the Frechet distance; the sliced Wasserstein distance for vectors."""
    return "sliced W2" if len(trial.dataset.data_shape) == 1 else trial.score_name


def score_cell(scores: Scores) -> Cell:
    """All measured scores, a number for each seed; "scores" is the one that the study compares."""
    measured = {f"{name}s": values for name in METRICS if (values := scores.of(name))}
    return {"scores": scores.of("sliced_wasserstein") or scores.fds, "nfe": scores.nfe, **measured}


def curves(run: Path) -> list[dict[str, float]]:
    """The curves of a training, from its metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: line[key] for key in CURVES if key in line} for line in lines]


def score_of(cell: Cell, steps: int | None = None) -> float:
    """The score of a student in so many steps, or of a teacher with its card's sampler; infinite where it diverged."""
    if cell["diverged"]:
        return math.inf
    ways = cell["scores"]
    way = next(iter(ways.values())) if steps is None else ways[str(steps)]
    return float(way["scores"][0])


@dataclass(frozen=True)
class Row:
    """One setting of a study.

    Args:
        label: for the tables.
        teachers, students: names of the trainings, one for each seed.
    """

    label: str
    teachers: list[str]
    students: list[str]


@dataclass(frozen=True)
class Runs:
    """The trainings of a study: teachers first, then their students.

    Args:
        bench: folder and device.
        num, features: as in TrainAndScore.
        teachers: name -> recipe.
        students: name -> (recipe, name of its teacher).
        given: teachers that are not trained: name -> (shipped model or folder, the real data).
    """

    bench: StudyContext
    num: int
    features: tuple[str, ...]
    teachers: dict[str, Recipe] = field(default_factory=dict)
    students: dict[str, tuple[Recipe, str]] = field(default_factory=dict)
    given: dict[str, tuple[str, Component]] = field(default_factory=dict)

    def add_teacher(self, name: str, pair: Pair, seed: int) -> str:
        """Returns its full name; a teacher that is added twice is trained once."""
        full = f"teacher-{name}-seed{seed}"
        self.teachers[full] = pair.teacher_recipe(seed)
        return full

    def add_given(self, model: str, pair: Pair) -> str:
        """A teacher that is there already; returns its full name."""
        full = "teacher-given"
        self.given[full] = (model, pair.student_recipe(0, Path(model)).data)
        return full

    def place(self, name: str) -> Path:
        """What a model is loaded by: the folder of its run, or what the study was given."""
        return Path(self.given[name][0]) if name in self.given else self.bench.folder.run_path(name)

    def add_student(self, name: str, pair: Pair, seed: int, teacher: str) -> str:
        """Returns its full name."""
        full = f"student-{name}-seed{seed}"
        self.students[full] = (pair.student_recipe(seed, self.place(teacher)), teacher)
        return full

    def add_row(self, label: str, pair: Pair, seeds: int, teacher: str, student: str) -> Row:
        """A teacher and its student for each seed; `teacher` and `student` are their names without the seed."""
        teachers = [self.add_teacher(teacher, pair, seed) for seed in range(seeds)]
        students = [self.add_student(student, pair, seed, one) for seed, one in enumerate(teachers)]
        return Row(label, teachers, students)

    def do(self) -> None:
        """Trains and scores all that has no cell yet. Students of a teacher that diverged count as diverged."""
        folder = self.bench.folder
        settings = (folder, self.num, self.features, str(self.bench.device))
        trained = [TrainAndScore(name, recipe, *settings) for name, recipe in self.teachers.items()]
        given = [ScoreTeacher(name, model, data, *settings) for name, (model, data) in self.given.items()]
        teachers: list[TrainAndScore | ScoreTeacher] = [*trained, *given]
        self.bench.do([task for task in teachers if not folder.has(task.name)])
        left = []
        for name, (recipe, teacher) in self.students.items():
            if folder.read(teacher)["diverged"]:
                why = f"its teacher {teacher} diverged"
                folder.cell(name, partial(dict, run=name, seed=recipe.train.seed, diverged=why, curves=[]))
            elif not folder.has(name):
                left.append(TrainAndScore(name, recipe, *settings))
        self.bench.do(left)

    def model(self, name: str) -> Model | None:
        """A trained model; None where it diverged."""
        if self.bench.folder.read(name)["diverged"]:
            return None
        return load(self.place(name), self.bench.device)

    def scores(self, rows: Sequence[Row]) -> dict[str, list[list[float]]]:
        """Of "teacher", "1 step" and "2 steps": row -> a score for each seed, infinite where the run diverged."""
        read = self.bench.folder.read
        students = {
            column: [[score_of(read(one), steps) for one in row.students] for row in rows]
            for column, steps in COLUMNS.items()
        }
        return {"teacher": [[score_of(read(one)) for one in row.teachers] for row in rows], **students}

    def note(self, seeds: int) -> str:
        """How the scores were measured."""
        return (
            f"{self.score_name()} of {self.num} samples, smaller is better; median over {seeds} seeds (range), ratios"
            " within each seed. A run whose loss or gradient stops being finite has 'diverged'."
        )

    def score_name(self) -> str:
        """The name of the score."""
        cells = (self.bench.folder.read(name) for name in (*self.teachers, *self.given))
        return next((str(cell["score"]) for cell in cells if not cell["diverged"]), "score")

    def cells(self) -> dict[str, Cell]:
        """All cells by name, without the curves of the trainings."""
        read = {name: self.bench.folder.read(name) for name in (*self.teachers, *self.given, *self.students)}
        return {name: {k: v for k, v in cell.items() if k != "curves"} for name, cell in read.items()}
