"""`study ablation`: each of the paper's stabilisers switched off in turn, and all of them; what it costs.

A row is a set of overrides of the baseline, in which all are on. Switches of the network and its preconditioning are
the teacher's too: it is trained with them as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from trigflow.data import load_data
from trigflow.models.model import Model
from trigflow.recipes import RECIPES
from trigflow.tools.studies.ablation_outcome import BASELINE, outcome
from trigflow.tools.studies.folder import Cell
from trigflow.tools.studies.study import StudyContext
from trigflow.tools.studies.tangents import derivative_norms
from trigflow.tools.studies.trained import Pair, Runs, TrainingSettings, check_feature_name, known

# The paper's stabilisers, all on (sections 4.1 and 4.2); with normalised tangents a student needs a rate that is small
# beside the teacher's (docs/LOG.md).
ON_NETWORK = ("precond.c_noise=t", "network.time_embedding=positional", "network.normalization=double")
ON_OBJECTIVE = (
    *("objective.P_mean=-1.0", "objective.P_std=1.4", "objective.normalization=rms", "objective.c=0.1"),
    *("objective.adaptive_weight=true", "objective.prior_weight=true", "optimizer.lr=1e-4"),
    "objective.target_halflife=0",
)
# Of r up to 1, in the recipe's unit: a quarter of the training. What is not here keeps the recipe's.
WARMUP = {"digits": 256_000, "mixture2d": 1_000, "mnist": 128_000}
FOURIER = ("network.time_embedding=fourier", "network.fourier_scale=16.0")
# What is off -> overrides of the network (teacher and student), overrides of the student.
SWITCHES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "time transform off (c_noise of EDM)": (("precond.c_noise=edm",), ()),
    "positional embedding off (Fourier, scale 16)": (FOURIER, ()),
    "double normalisation off (AdaGN)": (("network.normalization=adagn",), ()),
    "tangent normalisation off": ((), ("objective.normalization=none",)),
    "tangent warm-up off": ((), ("objective.warmup=0",)),
    "adaptive weight off": ((), ("objective.adaptive_weight=false",)),
    "prior weight off": ((), ("objective.prior_weight=false",)),
}
VARIANTS = {
    "tangent clipped": ((), ("objective.normalization=clip",)),
    "tangent normalised by its plain norm": ((), ("objective.normalization=l2",)),
}
ALL_OFF, RECIPE = "all off", "the recipe's own setting"
# Figure 4 compares diffusion models: name -> overrides of the teacher.
FIGURE_4 = {
    "EDM, Fourier 16": ("precond.c_noise=edm", *FOURIER),
    "EDM, positional": ("precond.c_noise=edm",),
    "TrigFlow, positional": (),
}

# For all rows alike. Digits: three seeds take about 50 minutes on two cores; the network is a half of the recipe's.
LENGTHS = {
    "digits": Pair(
        "digits",
        teacher=(
            *("network.width=256", "network.hidden=256", "network.emb_channels=85"),
            *("train.total_nimg=512000", "sampling.steps=16"),
        ),
        student=(
            *("network.width=256", "network.hidden=256", "network.emb_channels=85"),
            *("train.total_nimg=1024000", "train.synthetic=10000", "objective.warmup=256000"),
        ),
    ),
    "mixture2d": Pair(
        "mixture2d",
        teacher=("train.total_nimg=1024000",),
        student=("train.total_nimg=2048000", "objective.warmup=1000", "sampling.flow_map_num=0"),
    ),
    "mnist": Pair(
        "mnist",
        teacher=("train.total_nimg=768000", "sampling.steps=16"),
        student=("train.total_nimg=512000", "objective.warmup=[[256000,0.5]]"),
    ),
}


@dataclass(frozen=True)
class Ablation(TrainingSettings):
    """Each stabiliser of the paper off in turn, and all of them; tangent norms over t. Takes data.

    Args: see `TrainingSettings`.
    """

    name: ClassVar[str] = "ablation"

    def pairs(self) -> dict[str, tuple[str, Pair]]:
        """Row -> (name of its teacher, recipes). Rows with equal networks have the same teacher."""
        length = LENGTHS.get(self.data, Pair(self.data))
        base = Pair(self.data, length.teacher, length.student).changed(self.overrides)
        warmup = [f"objective.warmup={WARMUP[self.data]}"] if self.data in WARMUP else []
        paper = base.changed(ON_NETWORK).changed([f"student.{one}" for one in [*ON_OBJECTIVE, *warmup]])
        rows = {BASELINE: ("baseline", paper)}
        everything: tuple[list[str], list[str]] = ([], [])
        for number, (row, switch) in enumerate((SWITCHES | VARIANTS).items()):
            rows[row] = (f"network{number}" if switch[0] else "baseline", _switched(paper, *switch))
            if row in SWITCHES:
                everything[0].extend(switch[0])
                everything[1].extend(switch[1])
        rows[ALL_OFF] = ("network-all-off", _switched(paper, *everything))
        rows[RECIPE] = ("network-recipe", base)
        return rows

    def plan(self) -> dict[str, Any]:
        known(self.data, "teacher")
        check_feature_name(self.features)
        return {row: pair.check() for row, (_, pair) in self.pairs().items()}

    def measure(self, bench: StudyContext) -> Any:
        runs, pairs = self.runs(bench), self.pairs()
        rows = [
            runs.add_row(label, pair, self.seeds, teacher, f"row{number}")
            for number, (label, (teacher, pair)) in enumerate(pairs.items())
        ]
        paper = pairs[BASELINE][1]
        figure_4 = {}
        for number, (label, overrides) in enumerate(FIGURE_4.items()):
            pair = replace(paper, teacher=(*paper.teacher, *overrides))
            figure_4[label] = self._teachers(runs, f"figure{number}", pair)
        runs.do()
        norms = {
            "teachers": {
                label: [_norms(runs, one, one) for one in names] for label, names in figure_4.items()
            },
            "students": {
                row.label: [_norms(runs, *pair) for pair in zip(row.students, row.teachers, strict=True)]
                for row in rows
            },
        }
        return outcome(runs, rows, norms, RECIPES[known(self.data, "scd")]().name)

    def _teachers(self, runs: Runs, name: str, pair: Pair) -> list[str]:
        """Of each seed: one that is there already, if its recipe is the same."""
        names = []
        for seed in range(self.seeds):
            recipe = pair.teacher_recipe(seed)
            same = (full for full, other in runs.teachers.items() if other == recipe)
            names.append(next(same, None) or runs.add_teacher(name, pair, seed))
        return names


def _switched(pair: Pair, network: Any, student: Any) -> Pair:
    """With changes of both networks, and of the student."""
    return replace(pair, teacher=(*pair.teacher, *network), student=(*pair.student, *network, *student))


def _norms(runs: Runs, name: str, teacher: str) -> Cell | None:
    """Of a trained model, measured once; None where it diverged."""

    def measure() -> Cell:
        model, its_teacher = runs.model(name), runs.model(teacher)
        assert model and its_teacher
        return dict(derivative_norms(model, its_teacher, _data(runs, teacher, model)))

    if runs.bench.folder.read(name)["diverged"]:
        return None
    return runs.bench.folder.cell(f"norms-{name}", measure)


def _data(runs: Runs, teacher: str, model: Model) -> Any:
    return load_data(runs.teachers[teacher].data, model.precond.sigma_data)
