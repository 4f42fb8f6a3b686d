"""A model's folder is data: the code that it may name is not run unless the user says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import trigflow
from trigflow import recipes
from trigflow.evaluation.evaluate import evaluate
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.tools import doctor
from trigflow.training.assembly import assemble
from trigflow.training.loop import train

PRETRAINED = Path(trigflow.__file__).parent / "models" / "pretrained"


def test_a_folder_does_not_run_code_unasked(tmp_path: Path) -> None:
    """The card of a model names a function of the system: it is refused before it is imported, let alone called."""
    folder = shutil.copytree(PRETRAINED / "digits", tmp_path / "model")
    card = json.loads((folder / "model.json").read_text())
    card["network"] = {"name": "os:mkdir", "options": {"path": str(tmp_path / "pwned")}}
    (folder / "model.json").write_text(json.dumps(card))
    for attempt in (load, evaluate, doctor.diagnose):
        with pytest.raises(UserError, match=r"network 'os:mkdir', which is not run by default.*--trust-code"):
            attempt(str(folder))  # type: ignore[operator]
    recipe = recipes.get("digits-scd", [f"teacher={folder}"])
    with pytest.raises(UserError, match="not run by default"):
        assemble(recipe, torch.device("cpu"))
    assert not (tmp_path / "pwned").exists()


def test_the_data_of_a_card_is_not_code_either(tmp_path: Path) -> None:
    folder = shutil.copytree(PRETRAINED / "digits", tmp_path / "model")
    card = json.loads((folder / "model.json").read_text())
    card["recipe"]["data"] = {"name": "os:mkdir", "options": {"path": str(tmp_path / "pwned")}}
    (folder / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="data 'os:mkdir', which is not run by default"):
        evaluate(folder, teacher="none", num=2, seeds=1, progress=False)
    assert not (tmp_path / "pwned").exists()


def test_code_that_the_user_trusts_runs(tmp_path: Path) -> None:
    name = "trigflow.networks.mlp:MLP"
    small = ["train.batch=16", "train.total_nimg=32", "train.tensorboard=false", "sampling.grid_nimg=0"]
    teacher = train(
        recipes.get("digits-teacher", [f"network={name}", "network.width=16", *small]),
        tmp_path / "teacher",
        device="cpu",
        progress=False,
    )
    with pytest.raises(UserError, match="--trust-code"):
        load(teacher)
    assert load(teacher, "cpu", trust_code=True).sample(2, steps=1).shape == (2, 1, 8, 8)
    # The same network, named by the user in the recipe, needs no further word.
    same = [f"network={name}", "network.width=16", f"teacher={teacher}", "train.synthetic=0"]
    assert train(
        recipes.get("digits-scd", [*same, *small]), tmp_path / "student", device="cpu", progress=False
    ).is_dir()
