"""What report.json holds: what each judge finds, what a sample costs, and what is to be known of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trigflow.core.flow_map import FlowMapError
from trigflow.data import Dataset
from trigflow.evaluation.measure import (
    SPLITS,
    TIMING_BATCH,
    TIMING_REPEATS,
    Judge,
    Scores,
    Trial,
    score_held_out,
    seconds_per_sample,
)
from trigflow.evaluation.metrics import METRICS, Features, SampleSet, measured
from trigflow.evaluation.real import what_is_real
from trigflow.evaluation.rows import Row, cost_of, cost_ratios, fd_ratio, quality, row_of, spread
from trigflow.evaluation.training_compute import training_forwards, training_share
from trigflow.models.model import Model
from trigflow.system.machine import describe_machine

LEAST_AGREEMENT = 0.9  # below it, a classifier was trained on other data (Fashion-MNIST has MNIST's form)


@dataclass(frozen=True)
class Compared:
    """What an evaluation compares.

    Args:
        model: the subject.
        teacher: it is compared with, sampled by its `default_plan`; a subject that is a teacher itself; None for none.
        students: the subject in each number of steps.
        dataset, held_out_sets: the real data, and what is a row of its own.
        features: what the distances are taken in, of one judge or several.
        notes: on the choice of teacher and data.
    """

    model: Model
    teacher: Model | None
    students: list[Model]
    dataset: Dataset
    held_out_sets: list[Dataset]
    features: list[Features]
    notes: list[str]

    @property
    def everyone(self) -> list[Model]:
        """The teacher, where there is one, and the students."""
        return [*([self.teacher] if self.teacher else []), *self.students]


def contents(
    trial: Trial, compared: Compared, scores: Sequence[Sequence[Scores]], tests: Sequence[Row | None]
) -> Row:
    """The report.

    Args:
        trial: what all models were scored on.
        compared: the models.
        scores: by each judge, those of everyone in `compared`.
        tests: `held_out_rows`.

    Returns:
        What report.json holds: the first judge's findings with the costs; "judges", where there are several, holds
        those of the others, each in the report's own form.
    """
    first, *others = [
        _findings(trial, judge, compared, own, test)
        for judge, own, test in zip(trial.judges, scores, tests, strict=True)
    ]
    _add_costs(trial, compared, [*first["teachers"], *first["students"]])
    teacher = first["teachers"][0] if compared.teacher else None
    for row in first["students"]:
        row.update(cost_ratios(row, teacher))
    notes = compared.notes + [note for judge in trial.judges for note in _notes(trial, judge)]
    return {
        "model": compared.model.name,
        "data": trial.dataset.name,
        "num_samples": trial.num,
        "seeds": trial.seeds,
        "reference_teacher": compared.teacher.name if compared.teacher else None,
        **first,
        **({"judges": others} if others else {}),
        "timing": {"batch": TIMING_BATCH, "repeats": TIMING_REPEATS},
        "machine": describe_machine(compared.model.device),
        "notes": list(dict.fromkeys(notes)),
    }


def _findings(
    trial: Trial, judge: Judge, compared: Compared, scores: Sequence[Scores], test: Row | None
) -> Row:
    """Quality alone, by one judge."""
    rows = [row_of(model, own) for model, own in zip(compared.everyone, scores, strict=True)]
    if test and test["fd"] > 0:
        for row in rows:
            row["test_ratio"] = row["fd"] / test["fd"]
    teachers = rows[:1] if compared.teacher else []
    real, teacher = judge.real, teachers[0] if teachers else None
    return {
        "features": judge.features.name,
        "score": trial.name_of(judge),
        "teachers": teachers,
        "students": [row | {"fd_ratio": fd_ratio(row, teacher)} for row in rows[len(teachers) :]],
        "reference": {
            "num": real.moments.num,
            "num_features": real.moments.mean.numel(),
            "what": what_is_real(trial.dataset),
        },
        "real_vs_real": spread(judge.halves)
        | {"splits": SPLITS, "num": real.moments.num // 2}
        | _of_real(real),
        **({} if test is None else {"real_test": test}),
    }


def _add_costs(trial: Trial, compared: Compared, rows: Sequence[Row]) -> None:
    everyone = compared.everyone
    times = zip(seconds_per_sample(everyone), seconds_per_sample(everyone, batch=1), strict=True)
    for row, model, seconds in zip(rows, everyone, times, strict=True):
        row.update(cost_of(model, row["nfe"], seconds))
        row.update(_flow_map_error(trial, model) | _training(model, compared.teacher))


def _of_real(real: SampleSet) -> Row:
    """The metrics of all real data that look at nothing else, to read those of the samples beside."""
    found = {name: measured(name, real, real) for name, metric in METRICS.items() if metric.of_real}
    return {name: value for name, value in found.items() if value is not None}


def held_out_rows(trial: Trial, held_out_sets: Sequence[Dataset], progress: bool = False) -> list[Row | None]:
    """By each judge, the row of held-out data, and in it one for each level of noise; None without such data."""
    if not held_out_sets:
        return [None] * len(trial.judges)
    rows = [[_real_row(judge, one, progress) for one in held_out_sets] for judge in trial.judges]
    return [first | {"noised": noised} for first, *noised in rows]


def _real_row(judge: Judge, held_out: Dataset, progress: bool) -> Row:
    scores = score_held_out(judge, held_out, progress)
    about = {"data": held_out.name, "num": len(held_out.data), "what": what_is_real(held_out)}
    return about | {"fd": scores.fds[0]} | quality(scores)


def _training(model: Model, teacher: Model | None) -> Row:
    """What the training cost, and for a student beside a teacher its share of the teacher's."""
    cost: Row = {"training_forwards": training_forwards(model, teacher if model.is_student else None)}
    if model.is_student:
        cost["training_share"] = None if teacher is None else training_share(model, teacher)
    return cost


def _flow_map_error(trial: Trial, model: Model) -> dict[str, float]:
    """Of a student in one step, on data whose flow map is known."""
    oracle = trial.dataset.oracle
    if oracle is None or not model.is_student or model.default_plan.steps != 1 or model.guidance_range:
        return {}
    shape, sigma_data = model.card.data_shape, model.precond.sigma_data
    return FlowMapError.measure(oracle, shape, sigma_data, trial.num, model.device)(model.precond.denoised)


def _notes(trial: Trial, judge: Judge) -> list[str]:
    notes, real, name = [], judge.real, judge.features.name
    num_features = real.moments.mean.numel()
    if min(trial.num, real.moments.num) <= num_features:
        notes.append(f"Fewer samples than features ({num_features}): the distance is dominated by its bias.")
    if name == "pixels":
        notes.append(
            "Pixels are weak features: samples of a plain Gaussian with the right covariance score well."
        )
    agreement = measured("label_agreement", real, real)
    if agreement is not None and agreement < LEAST_AGREEMENT:
        notes.append(
            f"{name} gives only {agreement:.1%} of the real data its own label: it knows other data, "
            "and neither its labels nor its distances mean much here. Choose others with --features."
        )
    return notes
