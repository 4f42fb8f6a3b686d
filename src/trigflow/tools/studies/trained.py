"""What the studies that train have in common: recipes with overrides, and a training with its scores as one task."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from trigflow import recipes
from trigflow.evaluation.measure import Scores, Trial, new_trial, score_all
from trigflow.evaluation.metrics import load_features
from trigflow.evaluation.real import default_features, real_data
from trigflow.models.model import Model, load
from trigflow.recipes import RECIPES
from trigflow.recipes.schema import Recipe
from trigflow.system.config import to_json
from trigflow.system.errors import Diverged, UserError, did_you_mean
from trigflow.system.files import write_json
from trigflow.tools.studies.folder import Cell, StudyFolder
from trigflow.tools.studies.outcome import lasting
from trigflow.tools.studies.study import StudyContext
from trigflow.training.loop import train

STEPS = (1, 2)
BATCH = 250
# Pictures and events of a hundred trainings help nobody.
QUIET = ("sampling.grid_nimg=0", "train.tensorboard=false")
CURVES = ("nimg", "loss", "tangent_norm", "grad_norm")  # of metrics.jsonl, kept with the scores
OURS = ("teacher", "train.seed", "name")  # keys that a study sets itself


@dataclass(frozen=True)
class Pair:
    """A teacher's and its student's recipe, as changes of those of a data set.

    Args:
        data: prefix of the recipes {data}-teacher and {data}-scd.
        teacher, student: overrides `key=value`; what stands later wins.
    """

    data: str
    teacher: tuple[str, ...] = ()
    student: tuple[str, ...] = ()

    def changed(self, overrides: Sequence[str]) -> Pair:
        """With overrides of both, or of one: `teacher.key=value`, `student.key=value`.

        Raises:
            UserError: a key that the study sets itself.
        """
        teacher = [one.removeprefix("teacher.") for one in overrides if not one.startswith("student.")]
        student = [one.removeprefix("student.") for one in overrides if not one.startswith("teacher.")]
        for one in (*teacher, *student):
            key = one.partition("=")[0]
            if key in OURS:
                raise UserError(f"'{one}': the study sets {key} itself; remove it")
        return Pair(self.data, (*self.teacher, *teacher), (*self.student, *student))

    def teacher_recipe(self, seed: int) -> Recipe:
        """Raises a UserError for an unknown data set or key."""
        return recipes.get(known(self.data, "teacher"), [*QUIET, *self.teacher, f"train.seed={seed}"])

    def student_recipe(self, seed: int, teacher: Path) -> Recipe:
        """Raises a UserError for an unknown data set or key."""
        own = [f"train.seed={seed}", f"teacher={json.dumps(str(teacher))}"]
        return recipes.get(known(self.data, "scd"), [*QUIET, *self.student, *own])

    def check(self) -> dict[str, Any]:
        """The overrides and a digest of both recipes as JSON data, after these could be made."""
        both = [to_json(self.teacher_recipe(0)), to_json(self.student_recipe(0, Path("teacher")))]
        digest = hashlib.sha256(json.dumps(both, sort_keys=True).encode()).hexdigest()[:32]
        return {"teacher": self.teacher, "student": self.student, "recipes": digest}


def known(data: str, role: str) -> str:
    """The name of a recipe.

    Raises:
        UserError: there is none for such data.
    """
    trainable = [name.removesuffix("-scd") for name in RECIPES if name.endswith("-scd")]
    if data not in trainable:
        raise UserError(
            f"no recipes for data '{data}'{did_you_mean(data, trainable)}; a study that trains takes: "
            f"{', '.join(trainable)} (an override data=FILE changes the data itself)"
        )
    return f"{data}-{role}"


def check_feature_name(name: str | None) -> None:
    """Before anything is trained: raises a UserError for features that cannot be had."""
    if name is not None:
        load_features(name)


@dataclass(frozen=True)
class TrainAndScore:
    """Trains a recipe, or goes on with it; its scores become a cell. A run that diverges is a result, too.

    Args:
        name: of the run and its cell.
        recipe: what to train.
        folder: of the study.
        num: samples of each score.
        features: as in `load_features`; None: the default for the data.
        device: where to compute.
    """

    name: str
    recipe: Recipe
    folder: StudyFolder
    num: int
    features: str | None
    device: str

    def __call__(self) -> None:
        run, start = self.folder.run_path(self.name), time.perf_counter()
        cell: Cell = {"run": self.name, "seed": self.recipe.train.seed, "diverged": None}
        try:
            train(self.recipe, run, resume=True, device=self.device, progress=False)
            cell |= self._scored(load(run, self.device))
        except Diverged as failure:
            cell |= {"diverged": str(failure)}
        cell |= {"curves": curves(run), "seconds": time.perf_counter() - start}
        write_json(self.folder.cell_path(self.name), cell)

    def _scored(self, model: Model) -> Cell:
        trial = self._trial(model)
        ways = [model.with_plan(steps) for steps in (STEPS if model.is_student else (None,))]
        scores = score_all(trial, ways, progress=False)
        return {
            "params": model.num_parameters,
            "nimg": model.card.nimg,
            "score": score_name(trial),
            "scores": {
                str(way.default_plan.steps): score_cell(one) for way, one in zip(ways, scores, strict=True)
            },
        }

    def _trial(self, model: Model) -> Trial:
        dataset = real_data(model, self.recipe.data)
        features = load_features(self.features or default_features(dataset), model.device)
        return new_trial(dataset, features, self.num, 1, BATCH)


def score_name(trial: Trial) -> str:
    """What a study compares: the Frechet distance; among vectors the sliced Wasserstein distance, which sees all."""
    return "sliced W2" if len(trial.dataset.data_shape) == 1 else trial.score_name


def score_cell(scores: Scores) -> Cell:
    """Everything that was measured of one model, the score that counts first; a number for each seed."""
    agreements = {"label_agreements": scores.agreements} if scores.agreements else {}
    return {
        "scores": scores.sliced or scores.fds,
        "nfe": scores.nfe,
        "fds": scores.fds,
        "kernel_distances": scores.kernels,
        **agreements,
    }


def curves(run: Path) -> list[dict[str, float]]:
    """The course of a training, from its metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{key: line[key] for key in CURVES if key in line} for line in lines]


def score_of(cell: Cell, steps: int | None = None) -> float:
    """The score of a student's cell in so many steps, of a teacher's as its card says; infinite if it diverged."""
    if cell["diverged"]:
        return lasting(None)
    ways = cell["scores"]
    way = next(iter(ways.values())) if steps is None else ways[str(steps)]
    return float(way["scores"][0])


@dataclass(frozen=True)
class Runs:
    """The trainings of a study: teachers first, then their students.

    Args:
        bench: where they are done.
        num, features: as in TrainAndScore.
        teachers: name -> recipe.
        students: name -> (recipe, name of its teacher).
    """

    bench: StudyContext
    num: int
    features: str | None
    teachers: dict[str, Recipe] = field(default_factory=dict)
    students: dict[str, tuple[Recipe, str]] = field(default_factory=dict)

    def add_teacher(self, name: str, pair: Pair, seed: int) -> str:
        """Its full name; the same teacher is trained once."""
        full = f"teacher-{name}-seed{seed}"
        self.teachers[full] = pair.teacher_recipe(seed)
        return full

    def add_student(self, name: str, pair: Pair, seed: int, teacher: str) -> str:
        """Its full name."""
        full = f"student-{name}-seed{seed}"
        self.students[full] = (pair.student_recipe(seed, self.bench.folder.run_path(teacher)), teacher)
        return full

    def do(self) -> None:
        """What has no cell yet. A student whose teacher diverged is not trained: that is its result."""
        folder = self.bench.folder
        self.bench.do(
            [self._task(name, recipe) for name, recipe in self.teachers.items() if not folder.has(name)]
        )
        left = []
        for name, (recipe, teacher) in self.students.items():
            if folder.read(teacher)["diverged"]:
                why = f"its teacher {teacher} diverged"
                folder.cell(name, partial(dict, run=name, seed=recipe.train.seed, diverged=why, curves=[]))
            elif not folder.has(name):
                left.append(self._task(name, recipe))
        self.bench.do(left)

    def _task(self, name: str, recipe: Recipe) -> TrainAndScore:
        return TrainAndScore(name, recipe, self.bench.folder, self.num, self.features, str(self.bench.device))

    def model(self, name: str) -> Model | None:
        """A trained model; None where it diverged."""
        if self.bench.folder.read(name)["diverged"]:
            return None
        return load(self.bench.folder.run_path(name), self.bench.device)

    def score(self, name: str, steps: int | None = None) -> float:
        """Of a student in so many steps, of a teacher as its card says; infinite where it diverged."""
        return score_of(self.bench.folder.read(name), steps)

    def score_name(self) -> str:
        """What is compared."""
        cells = (self.bench.folder.read(name) for name in self.teachers)
        return next((str(cell["score"]) for cell in cells if not cell["diverged"]), "score")

    def cells(self) -> dict[str, Cell]:
        """All of them, by name, but for the curves of the training, which the folder keeps."""
        read = {name: self.bench.folder.read(name) for name in (*self.teachers, *self.students)}
        return {name: {k: v for k, v in cell.items() if k != "curves"} for name, cell in read.items()}
