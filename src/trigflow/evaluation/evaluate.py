"""Scores of a model beside its teacher: quality, time, evaluations and compute, in one report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from trigflow.data import Dataset
from trigflow.evaluation.cached_scores import SCORES, holds_scores
from trigflow.evaluation.contents import Compared, contents, held_out_rows
from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.guidance import common_scale, student_in_steps
from trigflow.evaluation.measure import (
    Scores,
    Trial,
    must_be_held_out,
    nearest_data,
    new_trial,
    samples_alone,
    score_all,
)
from trigflow.evaluation.metrics import Features, load_features
from trigflow.evaluation.real import (
    check_features,
    default_judges,
    held_out_data,
    real_data_of,
    reference_notes,
    with_noise,
)
from trigflow.evaluation.report import REPORT, write_report
from trigflow.evaluation.rows import Row
from trigflow.evaluation.teacher import reference_teacher
from trigflow.models.model import Model, load
from trigflow.models.pictures import drawable
from trigflow.system.config import Component
from trigflow.system.devices import true_float32
from trigflow.system.distributed import SINGLE_PROCESS, World
from trigflow.system.errors import UserError
from trigflow.system.files import LOCK, is_leftover, is_occupied, locked, make_folder, must_be_writable
from trigflow.system.numbers import whole_numbers
from trigflow.system.signals import interrupt_with_resume_hint

STEPS = (1, 2, 4)
GRID_SAMPLES, SCATTER_SAMPLES, NEAREST_SAMPLES = 50, 2000, 10


@dataclass(frozen=True)
class _Settings:
    """How much is measured, and where it is kept: as of `evaluate`; the bar is the main process's alone."""

    steps: Sequence[int] | None
    num: int
    seeds: int
    batch: int
    out: Path | str | None
    resume: bool
    progress: bool

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("num", "seeds", "batch")}
        for name, size in zip(sizes, whole_numbers(**sizes), strict=True):
            object.__setattr__(self, name, size)  # as Python's integers, which JSON knows
        _check(self)


@true_float32()
def evaluate(
    model: Model | str | Path,
    *,
    steps: Sequence[int] | None = None,
    num: int = 5000,
    seeds: int = 3,
    features: str | Sequence[str] | None = None,
    teacher: Model | str | Path | None = None,
    data: Dataset | Component | str | None = None,
    out: Path | str | None = None,
    guidance_scale: float | None = None,
    device: str | torch.device = "auto",
    batch: int = 250,
    progress: bool = True,
    trust_code: bool = False,
    test_data: Dataset | Component | str | None = None,
    resume: bool = False,
    guide: Model | str | Path | None = None,
    vae: str | None = None,
    noise_levels: Sequence[float] = (),
    world: World = SINGLE_PROCESS,
) -> Row:
    """Scores a student in several numbers of steps beside its teacher, from the same noises and labels.

    Args:
        model: a model, its shipped name or its folder.
        steps: of a student (default: 1, 2, 4); a teacher is sampled as its card says.
        num, seeds, batch, progress: samples of a score, >= 2; seeds 0, 1, ... (median counts); samples at once; bar.
        features: as in `load_features`, one or several: judges of the same samples, the first of which gives the main
            score (default: the shipped classifiers for digits and MNIST, else pixels).
        teacher: to compare with; "none" for no comparison (default: the one that the student was distilled from).
        data: the real data, for a latent model images or latents (default: what the model was trained on).
        out: folder for report.json, report.md, report.html, pictures; a new one, unless `resume`.
        guidance_scale: of the teacher and of a student that takes it, 1 = none (default: such a student's or its own).
        device, trust_code, vae: as in `load`, for models named by strings; all else computes where these do.
        test_data: held-out real data, for a row of its own (default: the test part of data that is named and has one).
        resume: take over the scores that a former evaluation of the same models, stopped or not, has left in `out`.
        guide: a weaker model that guides the teacher (default: the one that did when the student was distilled).
        noise_levels: a row for each: held-out images with noise of this standard deviation, in pixel values of 0..255.
        world: processes that call this alike, each on its device; all draw samples, the first does the rest.

    Returns:
        What report.json holds, in the main process; ratios are against the reference teacher, None without one.

    Raises:
        UserError: a number out of range, an unknown name, parts that do not fit each other, a folder in use.
    """
    with world.together():
        settings = _Settings(steps, num, seeds, batch, out, resume, progress and world.is_main)
        model = model if isinstance(model, Model) else load(model, device, trust_code, vae)
        reference, notes = reference_teacher(model, teacher, trust_code, guide)
        dataset = real_data_of(model, data, trust_code)
        held_out = held_out_data(model, data, test_data, trust_code)
        sets = _held_out_sets(dataset, held_out, noise_levels) if world.is_main else []
        known = _judges(features, dataset, model.device)
        models = _teacher_and_students(model, reference, steps, guidance_scale, guide is not None)
        notes += reference_notes(model, dataset)
        compared = Compared(model, *models, dataset, sets, known, notes)
    with _report_folder(settings, world) as cached:
        return _measured_and_written(compared, settings, cached, world)


def _measured_and_written(compared: Compared, settings: _Settings, cached: Path | None, world: World) -> Row:
    """The report, written beside the cached scores; nothing in all processes but the main one."""
    with world.together():
        trial = _trial(compared, settings, world)
        tests = held_out_rows(trial, compared.held_out_sets, settings.progress)
    scores = score_all(trial, compared.everyone, settings.progress, cached, world)
    if not world.is_main:
        return {}
    report = contents(trial, compared, scores, tests)
    if cached is not None:
        samples = _panels(compared.everyone, scores[0])
        write_report(report, samples, cached.parent, _beside_nearest(trial, samples))
    return report


# Preparation


def _judges(names: str | Sequence[str] | None, dataset: Dataset, device: torch.device) -> list[Features]:
    """The named features, or those that suit the data."""
    names = [names] if isinstance(names, str) else names or default_judges(dataset)
    known = [load_features(name, device) for name in names]
    for one in known:
        check_features(one, dataset)
    called = [one.name for one in known]
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise UserError(f"features {', '.join(names)}: '{twice[0]}' is there twice, give each once")
    return known


def _trial(compared: Compared, settings: _Settings, world: World) -> Trial:
    """What all models are compared with; the processes other than the main one only draw samples for it."""
    about = (compared.dataset, compared.features, settings.num, settings.seeds, settings.batch)
    return new_trial(*about, settings.progress) if world.is_main else samples_alone(*about)


def _held_out_sets(
    dataset: Dataset, held_out: Dataset | None, noise_levels: Sequence[float]
) -> list[Dataset]:
    """The held-out data, if there is any, then the same with each level of noise."""
    if held_out is None:
        if noise_levels:
            raise UserError("noise levels are of held-out data, and there is none: --test-data names it")
        return []
    must_be_held_out(held_out, dataset)
    return [held_out, *(with_noise(held_out, sd) for sd in noise_levels)]


def _teacher_and_students(
    model: Model,
    reference: Model | None,
    steps: Sequence[int] | None,
    guidance_scale: float | None,
    guide_was_given: bool,
) -> tuple[Model | None, list[Model]]:
    """Teacher and students, at one scale where the student takes it.

    Raises:
        UserError: what was asked for would have no effect.
    """
    scale = common_scale(model, guidance_scale)
    if not model.is_student and steps is not None:
        raise UserError(
            f"steps {list(steps)}: '{model.name}' is sampled as its card says; only a student takes steps"
        )
    if guidance_scale is not None and reference is None and model.guidance_range is None:
        raise UserError(
            f"guidance_scale {guidance_scale:g}: there is no teacher to be guided, and '{model.name}' takes no scale"
        )
    counts = (steps or STEPS) if model.is_student else ()
    students = [student_in_steps(model, count, scale) for count in counts]
    teacher = reference.with_plan(guidance_scale=scale) if reference else None
    if guide_was_given and teacher and teacher.default_plan.guidance_scale == 1:
        raise UserError(
            "a guide was given, but a guidance scale of 1 is none: give --guidance-scale, or remove the guide"
        )
    return teacher, students


def _check(settings: _Settings) -> None:
    """Numbers and folder, before anything is measured."""
    _check_numbers(settings)
    if settings.out is None:
        return
    out = Path(settings.out)
    must_be_writable(out)
    if holds_scores(out / SCORES) or (out / REPORT).exists():
        if not settings.resume:
            raise UserError(
                f"{out} holds an evaluation already: continue it with --resume, or choose another --out"
            )
    elif is_occupied(out, but=lambda name: name == SCORES or is_leftover(name)):
        raise UserError(f"{out} is not empty and holds no report: choose another --out")


@contextlib.contextmanager
def _report_folder(settings: _Settings, world: World) -> Iterator[Path | None]:
    """The folder within `out` where the main process, and no other, keeps scores as they are measured."""
    if settings.out is None:
        yield None
        return
    folder = Path(settings.out)
    with interrupt_with_resume_hint(), contextlib.ExitStack() as stack:
        with world.together():
            if world.is_main:
                make_folder(folder / SCORES)
                complaint = (
                    f"{folder} is in use by another evaluation: choose another --out, or wait for that one"
                )
                stack.enter_context(locked(folder / LOCK, complaint))
        yield folder / SCORES if world.is_main else None


def _check_numbers(settings: _Settings) -> None:
    for name, value, lowest in (
        ("num", settings.num, 2),
        ("seeds", settings.seeds, 1),
        ("batch", settings.batch, 1),
    ):
        if value < lowest:
            raise UserError(f"{name} is {value}: give {lowest} or more")
    steps = settings.steps
    if steps is None:
        return
    if not isinstance(steps, Sequence):
        raise UserError(f"steps is {steps}: give a list of numbers, such as [1, 2]")
    whole_numbers(**{f"steps[{place}]": number for place, number in enumerate(steps)})
    if not steps or min(steps) < 1:
        raise UserError(f"steps {list(steps)}: give one number or several, each 1 or more")
    if len(set(steps)) < len(steps):
        raise UserError(f"steps {list(steps)}: a number is repeated")


# The pictures


def _panels(models: Sequence[Model], scores: Sequence[Scores]) -> dict[str, Tensor]:
    """Samples of every model from the same noises and labels (all classes in turn); none that cannot be drawn."""
    shape = models[0].sample_shape
    if not drawable(shape):
        return {}
    vectors = len(shape) == 1
    n = SCATTER_SAMPLES if vectors else GRID_SAMPLES
    return {
        f"{model.name}: {in_steps(model.default_plan.steps)}, {own.nfe} NFE": torch.cat(
            list(model.sample_batches(n))
        )
        for model, own in zip(models, scores, strict=True)
    }


def _beside_nearest(trial: Trial, samples: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first images of each panel, and then, for each, the training image that the main judge finds nearest."""
    found = {}
    for name, images in samples.items():
        if images.ndim == 4:
            some = images[:NEAREST_SAMPLES]
            found[name] = torch.cat([some.cpu(), nearest_data(trial, some)])
    return found
