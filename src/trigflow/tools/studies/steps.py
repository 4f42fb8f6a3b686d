"""`study steps`: quality against evaluations, the student in a few steps beside its teacher in many."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any, ClassVar

from trigflow.evaluation.figures import in_steps
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.outcome import Outcome, Table, show
from trigflow.tools.studies.scored import Scored, Setting, check_setting, nfe_plot, scored
from trigflow.tools.studies.study import StudyContext

TEACHER_NFE = (9, 15, 21, 31, 63)  # Heun in n steps takes 2n - 1
EXPECTATION = (
    "ImageNet 512x512 (tables 6 and 8): sCD in 2 steps is within 7 to 13 % of its teacher's FID at 63 NFE, in 1 step "
    "within 32 to 38 %; each further step helps (multistep sCD: 16 steps 2 to 9 %)."
)


@dataclass(frozen=True)
class Steps(Setting):
    """A student in 1, 2, 4, 8 steps against its teacher at 9 .. 63 evaluations. Takes a model.

    Args: see `Setting`; guidance_scale is the teacher's (default: that of a student that takes it, else its card's).
    """

    name: ClassVar[str] = "steps"
    steps: tuple[int, ...] = (1, 2, 4, 8)

    def plan(self) -> dict[str, Any]:
        return {"teacher_nfe": TEACHER_NFE, **check_setting(self)}

    def measure(self, bench: StudyContext) -> Outcome:
        ready = scored(self, bench)
        scale = ready.teacher.card.sampling.guidance_scale if ready.scale is None else ready.scale
        students = {
            f"student, {in_steps(n)}": ready.score(f"student-{n}", ready.of_student(n)) for n in self.steps
        }
        teachers: dict[str, Cell] = {}
        for nfe in TEACHER_NFE:
            way = ready.of_teacher("heun", (nfe + 1) // 2, scale)
            teachers[f"teacher, heun, {in_steps(way.default_plan.steps)}"] = ready.score(
                f"teacher-heun-{nfe}", way
            )
        return _outcome(ready, students, teachers, scale)


def _outcome(ready: Scored, students: dict[str, Cell], teachers: dict[str, Cell], scale: float) -> Outcome:
    name = ready.score_name
    best = list(teachers.values())[-1]
    rows = [["model", "NFE", name, f"over the teacher's at {best['nfe']} NFE"]]
    for label, cell in (students | teachers).items():
        ratios = [one / other for one, other in zip(cell["scores"], best["scores"], strict=True) if other]
        rows.append([label, str(cell["nfe"]), show(cell["scores"]), show(ratios, "{:.2f}")])
    return Outcome(
        title=f"Steps: {ready.student.name} against {ready.teacher.name}",
        expectation=EXPECTATION,
        finding=_finding(students, teachers, name),
        tables=[Table(f"{name} over evaluations", rows)],
        plots={
            "steps.png": nfe_plot(
                name, {"teacher, heun": list(teachers.values()), "student": list(students.values())}
            )
        },
        notes=[
            *ready.notes(),
            f"The ratio is taken within each seed. Guidance of the teacher: {scale:g} (1 is none).",
        ],
        numbers={
            "score": name,
            "rows": [{"row": label, **cell} for label, cell in (students | teachers).items()],
        },
    )


def _finding(students: dict[str, Cell], teachers: dict[str, Cell], name: str) -> str:
    """For each number of steps: the fewest evaluations of the teacher that are as good."""
    texts = []
    for label, cell in students.items():
        score = statistics.median(cell["scores"])
        equal = [one["nfe"] for one in teachers.values() if statistics.median(one["scores"]) <= score]
        rival = (
            f"the teacher is as good at {min(equal)} NFE"
            if equal
            else "the teacher is worse at all of these NFE"
        )
        texts.append(f"{label} ({cell['nfe']} NFE): {name} {score:.3g}, {rival}")
    return "; ".join(texts) + "."
