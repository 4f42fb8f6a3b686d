"""What every study is, and how one is carried out: measured in its folder, then told."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from trigflow.system.devices import resolve_device, true_float32
from trigflow.system.files import LOCK, locked
from trigflow.system.machine import describe_machine
from trigflow.system.signals import interrupt_with_resume_hint
from trigflow.system.version import __version__
from trigflow.tools.studies.folder import StudyFolder, open_study
from trigflow.tools.studies.outcome import Outcome, to_markdown, write_outcome
from trigflow.tools.studies.workers import Task, run_all


@dataclass(frozen=True)
class StudyContext:
    """Where a study works.

    Args:
        folder: where it keeps what it has.
        device: where it computes.
        jobs: trainings at once.
        progress: tell what is done.
    """

    folder: StudyFolder
    device: torch.device
    jobs: int = 1
    progress: bool = True

    def do(self, tasks: Sequence[Task]) -> None:
        """All tasks; a line for each that ends."""
        done = 0

        def tell(name: str) -> None:
            nonlocal done
            done += 1
            if self.progress:
                print(f"{done} of {len(tasks)}: {name}", flush=True)

        run_all(tasks, self.jobs, tell)


class Study(Protocol):
    """A frozen dataclass: its first field is what is studied, the others are its flags; all of them decide the numbers.

    Attributes:
        name: of the study, as on the command line.
    """

    name: ClassVar[str]

    def plan(self) -> dict[str, Any]:
        """What else the numbers depend on (the study's own defaults), as JSON data.

        Raises:
            UserError: a mistake that can be told before anything is written.
        """

    def measure(self, bench: StudyContext) -> Outcome:
        """Everything that is not measured yet, and what came out."""


@true_float32()
def carry_out(
    study: Study, out: Path, device: str = "auto", jobs: int | None = None, progress: bool = True
) -> Outcome:
    """Measures what is not there yet, writes study.json, study.md, study.html and plots; prints the tables.

    Args:
        study: with its settings.
        out: folder; a new one, or that of the same study, which goes on.
        device: where to compute.
        jobs: trainings at once (default: one for each core on the CPU, else one).
        progress: tell what is done.

    Raises:
        UserError: a mistake in the settings, or a folder with something else in it.
        KeyboardInterrupt: Ctrl-C; the same command goes on.
    """
    place = resolve_device(device)
    origin = {"study": study.name, "version": __version__}
    config = {**origin, "settings": settings_of(study), "plan": study.plan()}
    folder = open_study(out, config)
    if jobs is None:
        jobs = (os.cpu_count() or 1) if place.type == "cpu" else 1
    with locked(out / LOCK, f"{out} is in use by another study: choose another --out, or wait for that one"):
        try:
            with interrupt_with_resume_hint():  # SIGTERM as Ctrl-C, so that the trainings hear of it
                outcome = study.measure(StudyContext(folder, place, jobs, progress))
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped, everything is saved: run the same command to resume") from None
        about = {**config, "command": command_of(study, out), "machine": describe_machine(place)}
        write_outcome(outcome, about, out)
    print(to_markdown(outcome))
    print(f"study: {out / 'study.html'}")
    return outcome


def settings_of(study: Study) -> dict[str, Any]:
    """The fields by name."""
    return {one.name: getattr(study, one.name) for one in fields(study)}  # type: ignore[arg-type]


def command_of(study: Study, out: Path) -> str:
    """The command line that asks for this study."""
    (_, subject), *others = settings_of(study).items()
    words = ["trigflow", "study", study.name, str(subject)]
    for name, value in sorted(others, key=lambda one: not isinstance(one[1], tuple)):  # lists first
        if name == "overrides":
            words += value
        elif value is not None:
            text = ",".join(f"{one:g}" for one in value) if isinstance(value, tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", text]
    return shlex.join([*words, "--out", str(out)])
