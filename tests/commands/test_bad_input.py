"""A user's mistake: one line on stderr that says what is wrong and what to do, exit code 2, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from safetensors.torch import load_file, save_file

from trigflow.commands import cli

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command line in an empty folder and returns its complaint."""
    monkeypatch.chdir(tmp_path)

    def run(line: str, *words: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        code = cli.main(line.split())
        shown = capsys.readouterr()
        assert code == 2, shown
        assert shown.err.startswith("trigflow: ")
        assert shown.err.count("\n") == 1, f"more than one line: {shown.err}"
        assert shown.out == ""
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        for word in words:
            assert word in shown.err
        return shown.err

    return run


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("trian digits-scd --out a", ["unknown command 'trian'", "did you mean 'train'?"]),
        ("sample digits --stpes 2 --out a.png", ["'--stpes'", "did you mean '--steps'?"]),
        ("sample digits --steps 0 --out a.png", ["--steps", "at least 1", "'0'"]),
        ("sample digits --steps two --out a.png", ["--steps", "'two'"]),
        ("sample digits --num -3 --out a.png", ["--num", "'-3'"]),
        ("sample digits --labels 1,x --out a.png", ["labels 'x'", "no names of classes"]),
        ("sample digits --guidance-scale nan --out a.png", ["--guidance-scale", "'nan'"]),
        ("sample digits --guidance-scale -1 --out a.png", ["--guidance-scale", "'-1'"]),
        ("sample digits", ["--out"]),
        ("sample digits --out a.jpg", ["a.jpg", ".png, .npz, .npy"]),
        ("sample digits --device tpu --out a.png", ["--device", "cuda"]),
        ("evaluate digits --steps 1,0 --out a", ["--steps", "'0'"]),
        ("evaluate digits --num 1 --out a", ["--num", "at least 2"]),
        ("evaluate digits --seeds 0 --out a", ["--seeds"]),
        (
            "sample digits --sampler heun --out a.png",
            ["'heun'", "consistency model", "leave the sampler out"],
        ),
        ("sample digits --num 1 --labels 1,2 --out a.png", ["2 labels for 1 samples"]),
        ("evaluate digits --teacher none --guidance-scale 2 --out a", ["guidance_scale 2", "no teacher"]),
        ("evaluate digits --teacher digits --out a", ["teacher 'digits'", "give a diffusion model"]),
        ("evaluate digits-teacher --teacher mnist-teacher --out a", ["its own reference"]),
        ("evaluate digits-teacher --steps 2 --out a", ["steps [2]", "only a student takes steps"]),
        (f"sample digits --seed {10**22} --out a.png", ["--seed", f"at most {2**53}"]),
        (f"sample digits --num {10**20} --out a.png", ["--num", "at most 100000000"]),
        (f"sample digits --labels {10**20} --out a.png", [f"labels '{10**20}'", "give whole numbers"]),
        (f"sample digits --num {'9' * 5000} --out a.png", ["--num", "at most"]),
        ("doctor digits --shape 99999999,99999999999", ["--shape", "at most"]),
        ("list recipies", ["recipies", "recipes"]),
        ("", ["COMMAND"]),
    ],
)
def test_arguments(line: str, words: list[str], refused: Refused) -> None:
    refused(line, *words)


# ----------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("train digits-tacher --out a", ["unknown recipe 'digits-tacher'", "did you mean 'digits-teacher'?"]),
        ("sample digit --out a.png", ["no model 'digit'", "did you mean 'digits'?"]),
        ("evaluate digit --out a", ["no model 'digit'", "did you mean 'digits'?"]),
        ("doctor digit", ["'digit'", "did you mean 'digits'?"]),
        ("doctor no_such_module:Net", ["no_such_module"]),
        ("train-classifier digit --out a", ["'digit'", "did you mean 'digits'?"]),
        ("train digits-scd teacher=nowhere --out a", ["teacher", "'nowhere'"]),
        ("train digits-scd --out a", ["needs a teacher"]),
        ("train digits-teacher network=unte --out a", ["unknown network 'unte'", "did you mean 'unet'?"]),
        ("train digits-teacher objective=difusion --out a", ["'difusion'", "did you mean 'diffusion'?"]),
        ("train digits-teacher sampling.sampler=huen --out a", ["'huen'", "did you mean 'heun'?"]),
        ("train digits-teacher data=digts --out a", ["'digts'", "did you mean 'digits'?"]),
        ("train digits-scd teacher=digits-teacher guide=digts --out a", ["guide = digts", "no guidance"]),
        ("evaluate digits-teacher --guide digts --out a", ["no model 'digts'"]),
        (
            "sample digits --guide digits-teacher --out a.png",
            ["'digits'", "only a diffusion model has a guide"],
        ),
    ],
)
def test_names(line: str, words: list[str], refused: Refused) -> None:
    refused(line, *words)


def test_unknown_sampler_and_label_of_a_model(student_folder: Path, refused: Refused) -> None:
    refused(f"sample {student_folder} --sampler huen --out a.png", "'huen'", "did you mean 'heun'?")
    refused(f"sample {student_folder} --labels 10 --out a.png", "labels [10]", "0..9")


# ----------------------------------------------------------------------------------------------- keys of a recipe


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.bacth=64", ["'train.bacth'", "did you mean 'batch'?"]),
        ("tarin.batch=64", ["'tarin.batch'", "did you mean 'train'?"]),
        ("network.widht=8", ["network.widht", "did you mean 'width'?"]),
        ("objective.P_maen=0", ["objective.P_maen", "did you mean 'P_mean'?"]),
        ("train.batch=many", ["train.batch", '"many"']),
        ("train.batch=0", ["train.batch", "greater than or equal to 1"]),
        ("train.batch=2.5", ["train.batch", "2.5"]),
        ("train.microbatch=7", ["microbatch"]),
        ("train.label_dropout=1.5", ["train.label_dropout", "1.5"]),
        ("optimizer.lr=-1", ["optimizer.lr", "-1"]),
        ("optimizer.lr=NaN", ["optimizer.lr"]),
        ("optimizer.name=sgd", ["optimizer.name", "radam"]),
        ("optimizer.schedule=linaer", ["'linaer'", "did you mean 'linear'?"]),
        ("precond.sigma_data=0", ["precond.sigma_data"]),
        ("objective.P_std=0", ["objective.P_std"]),
        ("sampling.steps=0", ["sampling.steps"]),
        ("ema.ema_std=[0.5]", ["ema.ema_std"]),
        (f"train.batch={10**20}", ["train.batch", "1000000"]),
        (f"train.total_nimg={10**20}", ["train.total_nimg", "1000000000000"]),
        (f"train.seed={10**20}", ["train.seed"]),
        ("precond.sigma_data=1e-30", ["precond.sigma_data"]),
        ("train", ["'train'"]),
    ],
)
def test_overrides(override: str, words: list[str], refused: Refused) -> None:
    refused(f"train digits-teacher {override} --out a", *words)


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ("[2,1]", ["objective.guidance_scale = [2, 1]", "[low, high]"]),
        ("[1,nan]", ["objective.guidance_scale", "[low, high]"]),
        ("-1", ["objective.guidance_scale = -1"]),
        ("[1,2]", ["[1, 2]", "network.guidance_input=true"]),
        (
            "[1,2] network.guidance_input=true sampling.guidance_scale=3",
            ["sampling.guidance_scale 3", "scales of 1 to 2"],
        ),
        (
            "1 network.guidance_input=true",
            ["network.guidance_input = true", "objective.guidance_scale=[1,2]"],
        ),
    ],
)
def test_scales_of_guidance(scale: str, words: list[str], teacher_folder: Path, refused: Refused) -> None:
    small = " ".join(TINY)
    refused(
        f"train digits-scd {small} teacher={teacher_folder} objective.guidance_scale={scale} --out a", *words
    )


@pytest.mark.parametrize("scale", ["2", "0", "[1,2]"])
def test_sct_guides_nobody(scale: str, refused: Refused) -> None:
    small = " ".join(TINY)
    refused(
        f"train digits-sct {small} init=scratch objective.guidance_scale={scale} --out a",
        "trigflow: objective: should be guidance_scale 1, not",
        "sct has no teacher to guide; remove it, or train with scd",
    )


@pytest.mark.parametrize("option", ["hidden=0", "emb_channels=0", "depth=1000000000"])
def test_sizes_of_a_network(option: str, refused: Refused) -> None:
    refused(f"train digits-teacher network=mlp network.{option} --out a", option.split("=")[0])


def test_more_data_than_memory(refused: Refused) -> None:
    refused(f"train mixture2d-teacher data.n={10**13} --out a", "not enough memory")


# ----------------------------------------------------------------------------------------------------------- data


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (np.zeros((0, 1, 8, 8), np.uint8), ["empty"]),
        (np.zeros((4, 1, 8, 8), np.uint8), ["does not vary"]),
        (np.full((4, 2), np.nan, np.float32), ["not finite"]),
        (np.zeros((4, 8), np.int64), ["int64"]),
    ],
)
def test_arrays_that_are_no_data(
    content: np.ndarray, words: list[str], refused: Refused, tmp_path: Path
) -> None:
    np.save(tmp_path / "images.npy", content)
    refused("train digits-teacher train.label_dropout=0 --data images.npy --out a", *words)


def test_data_that_is_missing_or_foreign(refused: Refused, tmp_path: Path) -> None:
    refused("train digits-teacher --data nowhere.npz --out a", "nowhere.npz")
    (tmp_path / "images.npz").write_text("<html>not found</html>")
    refused("train digits-teacher --data images.npz --out a", "images.npz")
    np.savez(tmp_path / "images.npz", a=np.zeros((4, 2)), b=np.zeros((4, 2)))
    refused("train digits-teacher --data images.npz --out a", "images.npz", "a, b")
    np.savez(tmp_path / "images.npz", x=np.random.rand(4, 2), labels=np.array([0, 1, 2, -1]))
    refused("train digits-teacher --data images.npz --out a", "images.npz has the label -1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "data inspect mnist",
            "mnist is a format: give the path of such data in its place, or data.folder=PATH",
        ),
        ("train digits-teacher data=arrays --out a", "data.path=PATH"),
        ("data inspect nothere/", "there is no file or folder nothere/"),
        ("data inspect ./nothere.tfrecord", "there is no file or folder ./nothere.tfrecord"),
        ("data inspect a.txt", "a.txt is of no format that is known: a file ends in .npy"),
        ("data inspect a.heic", "no format that is known"),
    ],
)
def test_paths_without_data(line: str, words: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    (tmp_path / "a.heic").write_text("hello")
    refused(line, words)


def test_an_empty_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "inspect", ""]) == 2
    assert "the data is an empty text: give a name" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["p/a.png", "p/data_batch_1", "p/s.tar", "p/a.parquet", "p/train-images-idx3-ubyte"]
)
def test_pipes_are_not_waited_for(name: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / name)
    refused("data inspect p", "p")
    refused(f"data inspect {name}", "p")


def test_a_classifier_needs_labels(refused: Refused, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 255, (200, 8, 8), np.uint8))
    refused("train-classifier images.npy --out a", "labelled")


def test_options_of_data_reach_every_command(refused: Refused, tmp_path: Path) -> None:
    np.savez(tmp_path / "two.npz", a=np.eye(4), b=np.eye(3))
    refused("train-classifier two.npz data.key=c --out a", "no array 'c'")
    refused("train-classifier two.npz data.key=a --out a", "4x4 pixels")
    refused("evaluate digits --data two.npz --out a", "choose one by data.key=NAME")
    refused("evaluate digits --data two.npz data.key=b --out a", "the shape (3,)")
    refused(
        "evaluate digits --test-data two.npz test_data.key=b --out a --teacher none", "test data two", "(3,)"
    )
    refused("evaluate digits data.split=test --out a", "--data, which was not given")
    refused("evaluate digits --data digits data=5 --out a", "unknown data '5'")
    refused("evaluate digits split=test --out a", "unknown key 'split'; there are: data, test_data")


# --------------------------------------------------------------------------------------------- models and checkpoints


def test_a_folder_without_a_model(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused("sample empty --out a.png", "empty", "model.json")


def test_damaged_weights(student_folder: Path, refused: Refused, tmp_path: Path) -> None:
    copy_model(student_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused("sample model --out a.png", "model.safetensors", "damaged")


def test_a_damaged_card(student_folder: Path, refused: Refused, tmp_path: Path) -> None:
    copy_model(student_folder, tmp_path / "model")
    (tmp_path / "model" / "model.json").write_text('{"name": ')
    refused("sample model --out a.png", "model.json")
    (tmp_path / "model" / "model.json").write_text('{"name": "foreign"}')
    refused("sample model --out a.png", "model.json")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("num_classes", -1, ["num_classes = -1"]),
        ("nimg", -1, ["nimg = -1"]),
        ("data_shape", [64], ["codec.name", "3 dimensions", "(64,)"]),
        ("codec.sigma_data", 0.4, ["codec.sigma_data = 0.4", "precond.sigma_data, 0.5"]),
        ("codec.std", [1e300], ["codec.std = 1e+300"]),
        ("codec.std", [float("nan")], ["codec.std.0 = NaN"]),
        ("codec.std", [], ["codec.std: 0 numbers"]),
        ("codec.mean", [1, 2, 3], ["codec.mean: 3 numbers"]),
        ("codec.mean", [-1e300], ["codec.mean = -1e+300"]),
        ("codec.name", "vector", ["codec.name", "1 dimensions"]),
        ("codec.name", "x", ["codec", "unknown codec 'x'"]),
        ("network.options.width", -5, ["width", "-5"]),
        ("network.options.width", float("inf"), ["network.width = Infinity"]),
        ("recipe.train", 5, ["recipe", "'train'"]),
        ("recipe.teacher", 5, ["recipe", "'teacher'"]),
        ("recipe.guide", ["a"], ["recipe", "'guide'"]),
    ],
)
def test_a_card_out_of_range(
    key: str, value: object, words: list[str], student_folder: Path, refused: Refused, tmp_path: Path
) -> None:
    copy_model(student_folder, tmp_path / "model")
    card = node = json.loads((tmp_path / "model" / "model.json").read_text())
    *path, last = key.split(".")
    for part in path:
        node = node[part]
    node[last] = value
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    refused("sample model --num 2 --out a.npz", "model.json", *words)


def test_weights_of_another_shape(student_folder: Path, refused: Refused, tmp_path: Path) -> None:
    copy_model(student_folder, tmp_path / "model")
    card = tmp_path / "model" / "model.json"
    card.write_text(card.read_text().replace('"width": 16', '"width": 32'))
    refused("sample model --out a.png", "shape")


def test_a_teacher_of_another_shape(teacher_folder: Path, refused: Refused) -> None:
    refused(f"train digits-scd network=mlp network.width=32 teacher={teacher_folder} --out a", "shape")


def test_a_teacher_of_other_data(teacher_folder: Path, refused: Refused) -> None:
    refused(f"train mixture2d-scd teacher={teacher_folder} --out a", "data shape")


def test_a_missing_device(student_folder: Path, refused: Refused) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    refused(f"sample {student_folder} --device cuda --out a.png", "'cuda'", "--device auto")


@pytest.mark.parametrize(
    ("change", "word"), [(lambda w: w.int(), "int32"), (lambda w: w * torch.nan, "not finite")]
)
def test_weights_that_are_no_numbers(
    change: Callable[[torch.Tensor], torch.Tensor],
    word: str,
    student_folder: Path,
    refused: Refused,
    tmp_path: Path,
) -> None:
    copy_model(student_folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    save_file({name: change(w) for name, w in load_file(path).items()}, path)
    refused("sample model --out a.png", "model.safetensors", "damaged", word)


# ------------------------------------------------------------------------------------------------ folders and files


def test_reports_and_classifiers_spare_foreign_folders(
    student_folder: Path, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    refused("train-classifier digits --epochs 1 --out a", "a is not empty", "--out")
    refused(f"evaluate {student_folder} --num 2 --seeds 1 --out a", "a is not empty", "--out")
    (tmp_path / "a" / "classifier.json").touch()
    refused("train-classifier digits --epochs 1 --out a", "holds a classifier already", "--out")


def test_damaged_recipes(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for text in ("[]", "null", "5", '"x"', "[" * 100_000, "9" * 5000):
        (tmp_path / "a" / "recipe.json").write_text(text)
        refused("train digits-teacher --out a --resume", "recipe.json", "damaged")


def test_a_folder_that_holds_something_else(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    refused("train digits-teacher --out a", "a is not empty", "--out")
    refused("demo --out a", "a is not empty", "--out")


def test_a_folder_that_holds_a_run(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "recipe.json").write_text("{}")
    refused("train digits-teacher --out a", "--resume")
    refused("train digits-teacher --out a --resume", "another recipe")


def test_a_file_where_a_folder_belongs(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    refused("train digits-teacher --out a", "a is a file")
    refused("demo --out a", "a is a file")
    refused("train-classifier digits --epochs 1 --out a", "a")


def test_a_file_below_a_file(student_folder: Path, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    refused(f"sample {student_folder} --out a/b.png", "a")
    refused(f"evaluate {student_folder} --out a/b --num 2 --seeds 1", "a")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_no_space_and_no_permission(
    code: int, student_folder: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    refused(f"sample {student_folder} --num 1 --out a.png", "a.png", os.strerror(code))
    refused(f"sample {student_folder} --num 1 --out a.npz", "a.npz", os.strerror(code))


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_without_permission(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(mode=0o500)
    refused(f"train digits-teacher {' '.join(TINY)} --out a/b", "a/b", "Permission denied")


def copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for name in ("model.json", "model.safetensors"):
        (target / name).write_bytes((source / name).read_bytes())
