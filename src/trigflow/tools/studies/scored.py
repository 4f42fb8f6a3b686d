"""What the studies of a trained model have in common: the model, its teacher, the data, and scores kept as cells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trigflow.data import Dataset
from trigflow.evaluation.guidance import common_scale, student_in_steps
from trigflow.evaluation.measure import SPLITS, Trial, new_trial, score_all
from trigflow.evaluation.metrics import Features, load_features
from trigflow.evaluation.real import default_features, real_data, trained_on
from trigflow.evaluation.reference import reference_key
from trigflow.evaluation.teacher import reference_teacher
from trigflow.models.model import Model, load
from trigflow.system.config import to_json
from trigflow.system.errors import UserError
from trigflow.system.tensors import tensors_digest
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.outcome import Line, Plot, score_plot
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.trained import BATCH, score_cell, score_name


@dataclass(frozen=True)
class Setting:
    """What a study of a model is told.

    Args:
        model: a student: a shipped name, or a run's folder.
        teacher: to compare with (default: the one that it was distilled from).
        features: as in `load_features` (default: the shipped classifier for digits and MNIST, else pixels).
        data: the real data (default: what the model was trained on).
        num: samples of each score.
        seeds: repetitions of each score.
        steps: of the student.
        guidance_scale: of the guided teacher, and of a student that takes it.
    """

    model: str
    teacher: str | None = None
    features: str | None = None
    data: str | None = None
    num: int = 5000
    seeds: int = 3
    steps: tuple[int, ...] = (1, 2)
    guidance_scale: float | None = None


@dataclass(frozen=True)
class Scored:
    """A student and its teacher, and the trial that both stand.

    Args:
        student, teacher: the models.
        trial: real data, features, number of samples, seeds.
        bench: where the scores are kept.
        scale: of the guidance, see `common_scale`.
    """

    student: Model
    teacher: Model
    trial: Trial
    bench: StudyContext
    scale: float | None = None

    def of_student(self, steps: int) -> Model:
        """The student in so many steps."""
        return student_in_steps(self.student, steps, self.scale)

    def of_teacher(self, sampler: str, steps: int, guidance_scale: float = 1.0) -> Model:
        """The teacher by a sampler of its own choice."""
        return self.teacher.with_plan(steps, guidance_scale, sampler)

    def score(self, name: str, way: Model, seeds: int | None = None) -> Cell:
        """Of so many seeds (default: all), measured once."""
        trial = self.trial if seeds is None else replace(self.trial, seeds=seeds)

        def measure() -> Cell:
            ((scores,),) = score_all(trial, [way], self.bench.progress)
            settings = {"sampler": way.default_plan.sampler, "steps": way.default_plan.steps}
            settings |= {"guidance_scale": way.default_plan.guidance_scale, "params": way.num_parameters}
            return {"name": name, **settings, **score_cell(scores)}

        return self.bench.folder.cell(name, measure)

    @property
    def score_name(self) -> str:
        """What is compared."""
        return score_name(self.trial)

    def notes(self) -> list[str]:
        """How the scores were taken."""
        trial = self.trial
        return [
            f"{self.score_name}: median over {trial.seeds} seeds (range), {trial.num} samples each, against"
            f" {len(trial.dataset.data)} real samples of {trial.dataset.name} in the features {trial.features.name};"
            " smaller is better. Sample k of a seed has the same noise and label in every row.",
            f"Student {self.student.name}, {self.student.num_parameters:,} parameters; teacher {self.teacher.name},"
            f" {self.teacher.num_parameters:,} parameters. NFE: evaluations of the network for a sample, counted.",
        ]


def check_setting(setting: Setting) -> dict[str, Any]:
    """Loads models, data and features, to see whether they are there and fit; returns which they are, as JSON data.

    Raises:
        UserError: numbers out of range, no such model, no student, no teacher to compare with or one that cannot be
            guided, no such data or features.
    """
    if len(set(setting.steps)) < len(setting.steps):
        raise UserError(f"steps {list(setting.steps)}: a number is repeated")
    student, teacher = _models(setting, "cpu")
    scale = common_scale(student, setting.guidance_scale)
    if scale is not None:
        # Complains where the teacher cannot be guided, or the student has not learned the scale.
        teacher.plan(1, scale, "heun")
        student_in_steps(student, 1, scale)
    dataset, features = _data_and_features(setting, student)
    return {
        "student_weights": weights_digest(student),
        "teacher": teacher.name,
        "teacher_weights": weights_digest(teacher),
        "reference": reference_key(dataset, features, SPLITS),
        **({} if teacher.guide is None else {"guide_weights": weights_digest(teacher.guide)}),
    }


def weights_digest(model: Model) -> str:
    """Of the weights and the card; without fields that are null or empty or the kind, which an older card has not."""
    card = {
        key: value
        for key, value in to_json(model.card).items()
        if value not in (None, [], ()) and key != "kind"
    }
    return tensors_digest(model.precond.state_dict(), json.dumps(card, sort_keys=True))


def _data_and_features(setting: Setting, student: Model) -> tuple[Dataset, Features]:
    dataset = real_data(student, trained_on(student, False) if setting.data is None else setting.data)
    return dataset, load_features(setting.features or default_features(dataset), student.device)


def _models(setting: Setting, device: Any) -> tuple[Model, Model]:
    student = load(setting.model, device)
    if not student.is_student:
        raise UserError(
            f"'{setting.model}' is no consistency model: give a student, whose teacher is compared with it"
        )
    teacher, notes = reference_teacher(student, setting.teacher, False)
    if teacher is None:
        raise UserError(f"the study needs a teacher. {notes[0]}")
    return student, teacher


def scored(setting: Setting, bench: StudyContext) -> Scored:
    """Models and trial, loaded.

    Raises:
        UserError: data or features that do not fit.
    """
    student, teacher = _models(setting, bench.device)
    dataset, features = _data_and_features(setting, student)
    trial = new_trial(dataset, [features], setting.num, setting.seeds, BATCH)
    return Scored(student, teacher, trial, bench, common_scale(student, setting.guidance_scale))


def nfe_plot(score: str, lines: Mapping[str, Sequence[Cell]]) -> Plot:
    """Scores over NFE; lines: label -> cells."""
    ordered = {label: sorted(cells, key=lambda cell: int(cell["nfe"])) for label, cells in lines.items()}
    return score_plot(
        score,
        "NFE per sample",
        [
            Line(label, [c["nfe"] for c in cells], [c["scores"] for c in cells])
            for label, cells in ordered.items()
        ],
    )
