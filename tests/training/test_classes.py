"""A run on class folders: their names and gaps are in the model's card, and their order stays that of the run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image

from trigflow import recipes
from trigflow.commands import cli
from trigflow.evaluation.real import real_data
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.system.tensors import read_state, write_state
from trigflow.training.loop import train


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve classes, "0" to "11", of one picture each."""
    path = tmp_path_factory.mktemp("data") / "numbers"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    for number, image in enumerate(pixels):
        (path / str(number)).mkdir(parents=True)
        Image.fromarray(image).save(path / str(number) / "a.png")
    return path


def trained(
    data: Path, out: Path, *changes: str, resume: bool = False, recipe: str = "digits-teacher"
) -> Path:
    dropout = () if recipe == "digits-scd" else ("train.label_dropout=0.1",)
    made = recipes.get(recipe, [*TINY, f"data={data}", *dropout, *changes])
    return train(made, out, resume, device="cpu", progress=False)


def test_names_are_in_the_card_and_asked_for(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(folders, tmp_path / "run", "sampling.steps=2")
    assert capsys.readouterr().err == "labels: 12 classes from folders\n"
    assert load(run, "cpu").card.classes == tuple(map(str, range(12)))
    line = ["sample", str(run), "--num", "4", "--device", "cpu", "--out", str(tmp_path / "a.npz"), "--labels"]
    assert cli.main([*line, "10,2"]) == 0
    assert "labels: 10 (10), 2 (2)\n" in capsys.readouterr().out
    with np.load(tmp_path / "a.npz") as stored:
        assert stored["labels"].tolist() == [10, 2, 10, 2]
    assert cli.main([*line, "12"]) == 2
    assert "has the classes 0..11" in capsys.readouterr().err


def test_names_come_from_a_prepared_archive(folders: Path, tmp_path: Path) -> None:
    assert cli.main(["data", "prepare", str(folders), "--out", str(tmp_path / "a.zip")]) == 0
    run = trained(tmp_path / "a.zip", tmp_path / "run")
    assert load(run, "cpu").card.classes == tuple(map(str, range(12)))


def test_classes_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(8) % 2 * 7)
    run = trained(tmp_path / "a.npz", tmp_path / "run")
    assert "8 classes from array labels; 6 without samples" in capsys.readouterr().err
    model = load(run, "cpu")
    assert model.card.unseen == (1, 2, 3, 4, 5, 6)
    found = model.labels(4)
    assert found is not None and found.tolist() == [0, 7, 0, 7]


def test_a_run_of_an_earlier_version_keeps_its_order(folders: Path, tmp_path: Path) -> None:
    """Its checkpoints and its card hold no names; folders were numbered in plain order then."""
    run = trained(folders, tmp_path / "run")
    longer = "train.total_nimg=48"
    assert trained(folders, run, longer, resume=True) == run
    for path in (run / "checkpoints").glob("*.safetensors"):
        tensors, state = read_state(path)
        assert state.pop("classes") == list(map(str, range(12)))
        write_state(path, tensors, state)
    with pytest.raises(UserError, match="the class '2' as number 4, as earlier versions sorted folders"):
        trained(folders, run, "train.total_nimg=64", resume=True)
    card = json.loads((run / "model.json").read_text())
    del card["classes"], card["unseen"]
    (run / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="the class '2' as number 4, as earlier versions sorted folders"):
        trained(folders, tmp_path / "student", f"teacher={run}", recipe="digits-scd")
    with pytest.raises(UserError, match="the class '2' as number 4, as earlier versions sorted folders"):
        real_data(load(run, "cpu"), str(folders))
