"""How far a one-step student is from the exact flow map: sCD and sCT on a mixture whose flow is known, over seeds.

    python benchmarks/mixture2d.py --json results/mixture2d.json

Runs the recipes mixture2d-scd (from the exact velocity) and mixture2d-sct (from data alone), about four minutes each on
one core. A run that was stopped is resumed, a finished one is only read.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

from trigflow import recipes
from trigflow.evaluation.evaluate import evaluate
from trigflow.system.machine import describe_machine
from trigflow.training.loop import train

NUM = 10_000


@dataclass(frozen=True)
class Row:
    """One run: |f - exact| / sigma_data of one step from t_max, and the distance of its samples to the data.

    `rise` is the final RMS error over the smallest that the run has logged: a run that falls throughout has 1.
    """

    recipe: str
    seed: int
    flow_map_median: float
    flow_map_rms: float
    rise: float
    sliced_wasserstein: float


def measure(name: str, seed: int, runs: Path) -> Row:
    """Trains, or goes on, or reads what is finished."""
    recipe = recipes.get(name, [f"train.seed={seed}"])
    folder = train(recipe, runs / f"{name}-{seed}", resume=True, device="cpu")
    report = evaluate(folder, steps=[1], num=NUM, seeds=1, device="cpu", progress=False)
    (student,) = report["students"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    median, rms = student["flow_map_median"], student["flow_map_rms"]
    rise = rms / min(line["flow_map_rms"] for line in lines)
    return Row(name, seed, median, rms, rise, student["sliced_wasserstein"])


def table(rows: list[Row]) -> str:
    """Markdown: the median over the seeds and the range."""
    lines = [
        "| recipe | seeds | map error, median | map error, RMS | final over smallest | sliced W2 to data |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(row.recipe for row in rows):
        group = [row for row in rows if row.recipe == name]
        keys = ("flow_map_median", "flow_map_rms", "rise", "sliced_wasserstein")
        cells = [_spread([float(asdict(row)[key]) for row in group]) for key in keys]
        lines.append(f"| {name} | {len(group)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f} .. {max(values):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/mixture2d"), help="where the trainings are kept"
    )
    parser.add_argument("--seeds", type=int, default=5, help="seeds 0, 1, ... (default: 5)")
    args = parser.parse_args()
    names = ("mixture2d-scd", "mixture2d-sct")
    rows = [measure(name, seed, args.runs) for name in names for seed in range(args.seeds)]
    print(table(rows))
    if args.json:
        result = {
            "command": "python benchmarks/mixture2d.py --json results/mixture2d.json",
            "num": NUM,
            "machine": describe_machine("cpu"),
            "rows": [asdict(row) for row in rows],
        }
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
