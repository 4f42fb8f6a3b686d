"""Files of the version before the packages were rearranged: loaded, resumed and sampled with the results of then.

`earlier/` holds a teacher, a student's run that was stopped half-way, and that student as it was finished: tiny
networks on digits, trained by commit 7eb186d.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import trigflow
from trigflow.commands import cli
from trigflow.evaluation.training_compute import training_forwards

EARLIER = Path(__file__).with_name("earlier")
STUDENT = (
    *(
        "train",
        "digits-scd",
        "network.width=16",
        "network.depth=2",
        "network.hidden=16",
        "network.emb_channels=16",
    ),
    *("train.batch=32", "train.log_nimg=32", "train.tensorboard=false", "sampling.grid_nimg=0"),
    *("train.total_nimg=640", "train.checkpoint_nimg=320", "teacher=teacher", "train.synthetic=0"),
    *("objective.warmup=10", "objective.time_distribution=lognormal", "--out", "student", "--device", "cpu"),
)


# The sum of all pixel values of eight samples of seed 3.
@pytest.mark.parametrize(
    ("model", "steps", "total"),
    [("teacher", 5, 55890), ("finished", 2, 39003), ("digits", 2, 38616), ("mnist", 2, 239529)],
)
def test_a_model_is_sampled_as_before(
    model: str, steps: int, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(EARLIER)
    images = trigflow.load(model, device="cpu").sample(8, steps=steps, seed=3)
    # A pixel value may be rounded to its neighbour by another processor.
    assert int(images.long().sum()) == pytest.approx(total, rel=1e-4)


def test_a_run_is_resumed_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(EARLIER, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    assert cli.main([*STUDENT, "--resume"]) == 0
    lines = (Path("student") / "metrics.jsonl").read_text().splitlines()
    before = (Path("finished") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["nimg"] for line in lines] == [json.loads(line)["nimg"] for line in before]
    losses, wanted = ([json.loads(line)["loss"] for line in found] for found in (lines, before))
    assert losses == pytest.approx(wanted, rel=1e-4)
    weights, finished = (load_file(Path(name) / "model.safetensors") for name in ("student", "finished"))
    assert weights.keys() == finished.keys()
    for name, tensor in finished.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_the_cost_of_a_training_is_told_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its objective was stored with an option that has another name now."""
    monkeypatch.chdir(EARLIER)
    assert training_forwards(trigflow.load("finished", device="cpu"), None) == 640 * 5


def test_a_recipe_whose_objective_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(EARLIER, tmp_path / "runs")
    path = tmp_path / "runs" / "student" / "recipe.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"objective": "scd"}))
    line = [str(tmp_path / "runs" / word) if word == "student" else word for word in STUDENT]
    assert cli.main([*line, "--resume"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
