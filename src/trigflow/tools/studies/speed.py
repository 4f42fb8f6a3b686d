"""`study speed`: the student's time beside its teacher's, and beside the cheapest teacher of equal score."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from trigflow.evaluation.figures import in_steps
from trigflow.evaluation.measure import TIMING_BATCH, TIMING_REPEATS, seconds_per_sample
from trigflow.models.model import Model
from trigflow.system.errors import UserError
from trigflow.system.machine import describe_machine
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.outcome import Outcome, Table, show
from trigflow.tools.studies.scored import Scored, Setting, check_setting, nfe_plot, scored
from trigflow.tools.studies.study import StudyContext

HEUN_STEPS = 32  # 63 evaluations, as the paper samples its teachers
GUIDANCE = 1.5  # where none is given: a guided evaluation costs two, whatever the scale
BATCHES = (1, TIMING_BATCH)
GOALS = {"guided": 50, "unguided": 28}  # times faster in two steps
COUNTS = (*range(2, 13), 14, 16, 18, 20, 24, 28, 32, 40, 48, 63)  # steps that a rival may take
FAR = 1.5  # times the goal: so far from it one seed is enough, as seeds differ by a tenth
BASE, RIVAL = "student, 2 steps", "rival: "
EXPECTATION = (
    "two steps instead of 63 x 2 guided evaluations: 63 times fewer, and about 50 times faster on one A100 at batch 1 "
    f"(OpenAI, 2024). Asked here: at least {GOALS['guided']}x the guided teacher and {GOALS['unguided']}x the unguided "
    "one, at batch 1 and 64. The paper has no comparison with the cheapest teacher of equal FID."
)


@dataclass(frozen=True)
class Speed(Setting):
    """The student's time in 1 and 2 steps against its teacher's, guided, unguided, and of equal score. Takes a model.

    Args: see `Setting`.
    """

    name: ClassVar[str] = "speed"

    def plan(self) -> dict[str, Any]:
        if 2 not in self.steps:
            raise UserError(f"steps {list(self.steps)}: study speed compares with 2 steps, give them too")
        return {"heun_steps": HEUN_STEPS, "rival_steps": COUNTS, **check_setting(self)}

    def measure(self, bench: StudyContext) -> Outcome:
        ready = scored(self, bench)
        scale = _guided_scale(ready.teacher, ready.scale)
        ways = {f"student, {in_steps(n)}": ready.of_student(n) for n in self.steps}
        ways["teacher, unguided"] = ready.of_teacher("heun", HEUN_STEPS)
        if scale is not None:
            ways[f"teacher, guidance {scale:g}"] = ready.of_teacher("heun", HEUN_STEPS, scale)
        cells = {label: ready.score(cell_name(way), way) for label, way in ways.items()}
        tried: list[Cell] = []
        goal = statistics.median(cells[BASE]["scores"])

        def score(way: Model) -> list[float]:
            tried.append(_score_of_rival(ready, way, goal))
            return [float(one) for one in tried[-1]["scores"]]

        rival = find_rival(rivals(ready, scale), score, goal)
        if rival is not None:
            label = RIVAL + _in_words(rival)
            ways[label], cells[label] = rival, tried[-1]
        timing = bench.folder.cell("timing", lambda: _timed(ways, bench))
        return _outcome(ready, cells, tried, timing, scale)


def _guided_scale(teacher: Model, scale: float | None) -> float | None:
    """Of the guided rows, by default the teacher's own; None for none of them: it cannot be guided, or 1 asked for."""
    if not can_be_guided(teacher) or scale == 1:
        return None
    own = teacher.card.sampling.guidance_scale
    return (own if own != 1 else GUIDANCE) if scale is None else scale


def can_be_guided(teacher: Model) -> bool:
    """Whether it has a guide, or knows classes and was trained with label dropout."""
    return teacher.guide is not None or bool(teacher.num_classes and teacher.card.label_dropout)


def cell_name(way: Model) -> str:
    """A name for the file of its scores."""
    role = "student" if way.is_student else "teacher"
    plan = way.default_plan
    guidance = f"-guidance{plan.guidance_scale:g}" if plan.guidance_scale != 1 else ""
    return f"{role}-{plan.sampler}-{plan.steps}{guidance}"


def _in_words(way: Model) -> str:
    plan = way.default_plan
    guidance = f", guidance {plan.guidance_scale:g}" if plan.guidance_scale != 1 else ""
    return f"{plan.sampler}, {in_steps(plan.steps)}{guidance}"


def rivals(ready: Scored, scale: float | None) -> Iterator[Model]:
    """Settings of the teacher over both samplers and, where it can be guided, with and without; the cheapest first."""
    settings = []
    for factor, guidance in ((1, 1.0), *(((2, scale),) if scale is not None else ())):
        for steps in COUNTS:
            settings += [(factor * steps, "dpmpp_2m", steps, guidance)]
            settings += [(factor * (2 * steps - 1), "heun", steps, guidance)] if steps <= HEUN_STEPS else []
    for _, sampler, steps, guidance in sorted(settings):
        yield ready.of_teacher(sampler, steps, guidance)


def find_rival(ways: Iterator[Model], score: Callable[[Model], list[float]], goal: float) -> Model | None:
    """The first whose median score is no worse than the goal; None if there is none. Those after it are not scored."""
    return next((way for way in ways if statistics.median(score(way)) <= goal), None)


def _score_of_rival(ready: Scored, way: Model, goal: float) -> Cell:
    """Of all seeds, or of the first where that is far from the goal."""
    name = cell_name(way)
    if not ready.bench.folder.has(name):
        first = ready.score(f"{name}-seed0", way, seeds=1)
        if first["scores"][0] > FAR * goal:
            return first
    return ready.score(name, way)


def _timed(ways: dict[str, Model], bench: StudyContext) -> Cell:
    """Seconds a sample of all, interleaved, in one run."""
    seconds = {
        str(batch): dict(zip(ways, seconds_per_sample(list(ways.values()), batch=batch), strict=True))
        for batch in BATCHES
    }
    return {"seconds_per_sample": seconds, "machine": describe_machine(bench.device)}


def _outcome(
    ready: Scored, cells: dict[str, Cell], tried: list[Cell], timing: Cell, scale: float | None
) -> Outcome:
    name, seconds = ready.score_name, timing["seconds_per_sample"]
    factors = {batch: {row: times[row] / times[BASE] for row in cells} for batch, times in seconds.items()}
    head = ["model", "NFE", name, "NFE over 2 steps"]
    for batch in seconds:
        head += [f"ms a sample, batch {batch}", "time over 2 steps"]
    rows = [head]
    for row, cell in cells.items():
        ratio = cell["nfe"] / cells[BASE]["nfe"]
        rows.append([row, str(cell["nfe"]), show(cell["scores"]), f"{ratio:.1f}x"])
        for batch in seconds:
            rows[-1] += [f"{1000 * seconds[batch][row]:.3g}", f"{factors[batch][row]:.1f}x"]
    return Outcome(
        title=f"Speed: {ready.student.name} against {ready.teacher.name}",
        expectation=EXPECTATION,
        finding=_finding(cells, factors, tried),
        tables=[Table("Time and score", rows)],
        plots={"speed.png": nfe_plot(name, dict(plotted(cells, tried)))},
        notes=[*ready.notes(), *_notes(timing, scale, tried)],
        numbers={
            "score": name,
            "rows": cells,
            "tried": tried,
            "timing": timing,
            "time_over_two_steps": factors,
        },
    )


def _finding(cells: dict[str, Cell], factors: dict[str, dict[str, float]], tried: list[Cell]) -> str:
    texts = []
    for row in cells:
        times = " and ".join(f"{factors[batch][row]:.1f}x at batch {batch}" for batch in factors)
        kind = "unguided" if "unguided" in row else "guided"
        if row.startswith("teacher"):
            reached = all(factors[batch][row] >= GOALS[kind] for batch in factors)
            texts.append(f"two steps against the {row}: {times} (at least {GOALS[kind]}x: {_yes(reached)})")
        elif row.startswith(RIVAL):
            ratio = cells[row]["nfe"] / cells[BASE]["nfe"]
            texts.append(
                f"against the cheapest teacher that is no worse ({row.removeprefix(RIVAL)}, {cells[row]['nfe']} NFE): "
                f"{ratio:.1f}x the evaluations, {times}"
            )
    if not any(row.startswith(RIVAL) for row in cells):
        best = min(tried, key=lambda cell: statistics.median(cell["scores"]))
        texts.append(
            f"no setting of the teacher is as good as two steps of the student; the best of {len(tried)} has "
            f"{statistics.median(best['scores']):.3g} at {best['nfe']} NFE"
        )
    return "; ".join(texts) + "."


def _yes(reached: bool) -> str:
    return "reached" if reached else "not reached"


def _notes(timing: Cell, scale: float | None, tried: list[Cell]) -> list[str]:
    machine = timing["machine"]
    notes = [
        f"Time: whole calls, median of {TIMING_REPEATS} rounds in which all rows take turns, after a warm-up; one run"
        f" on {machine['cpu']}, {machine['threads']} threads, device {machine['device']}, torch {machine['torch']}.",
        f"Rival: settings of dpmpp_2m and heun in the order of their NFE, until one has a median no worse than two"
        f" steps of the student ({len(tried)} tried); the others of a setting's seeds are left out where the first is"
        f" {FAR:g} times as bad.",
    ]
    if scale is None:
        notes.append(
            "No guided rows: a guidance scale of 1 was asked for, or the teacher was not trained with dropped labels"
            " (train.label_dropout)."
        )
    return notes


def plotted(cells: dict[str, Cell], tried: list[Cell]) -> list[tuple[str, list[Cell]]]:
    """Lines by their labels: the student, and the teacher by each sampler, guided and not, each setting once."""
    teacher = [cell for row, cell in cells.items() if row.startswith("teacher")]
    groups = {"student": [cell for row, cell in cells.items() if row.startswith("student")]}
    for sampler in ("heun", "dpmpp_2m"):
        for guided in (False, True):
            own = [one for one in (*teacher, *tried) if one["sampler"] == sampler]
            own = [one for one in own if (one["guidance_scale"] != 1) == guided]
            label = f"teacher, {sampler}{', guided' if guided else ''}"
            groups[label] = list({one["nfe"]: one for one in own}.values())
    return [(label, rows) for label, rows in groups.items() if rows]
