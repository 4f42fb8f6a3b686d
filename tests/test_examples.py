"""The examples run, with tiny settings, and are short enough to be read."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY

import trigflow
from trigflow import recipes
from trigflow.commands import cli
from trigflow.core.oracles import mixture2d
from trigflow.evaluation.metrics import sliced_wasserstein
from trigflow.system.errors import UserError

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def run(name: str, **settings: Any) -> Any:
    return runpy.run_path(str(Path(__file__).parent.parent / "examples" / f"{name}.py"))["main"](**settings)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    assert text.startswith('"""')
    assert 20 <= len(text.splitlines()) <= 80


def test_every_example_is_run_here() -> None:
    here = Path(__file__).read_text()
    assert all(f'run("{path.stem}"' in here for path in EXAMPLES)


def test_sample_digits(tmp_path: Path) -> None:
    run("sample_digits", num=2, out=tmp_path / "digits.png")
    assert (tmp_path / "digits.png").stat().st_size > 0


def test_own_training_loop_learns() -> None:
    """Short as it is here, it brings the error from about 1.4 (no training) to well below 1."""
    assert run("own_training_loop", steps=200, width=32) < 0.8


def test_derivative_of_your_network() -> None:
    errors = run("derivative_of_your_network", batch=3)
    assert errors["func"] < 1e-12
    assert errors["finite_difference"] < 1e-6


def test_flow_matching_teacher_is_converted_exactly() -> None:
    """Twice the steps, about a quarter of the error: what is left is the solver's, not the conversion's."""
    coarse = run("flow_matching_teacher", num=200, steps=64)
    fine = run("flow_matching_teacher", num=200, steps=128)
    finest = run("flow_matching_teacher", num=200, steps=512)
    assert abs(fine - finest) < 0.35 * abs(coarse - finest)


def test_train_on_your_images(tmp_path: Path) -> None:
    overrides = (*TINY, "train.batch=32")
    samples = run("train_on_your_images", folder=tmp_path, count=64, overrides=overrides)
    assert samples.shape == (64, 1, 8, 8)
    assert samples.dtype == torch.uint8
    assert (tmp_path / "samples.png").exists()


# Parts of the user's own, in a file outside the package: in Python, and from the command line


@pytest.fixture
def in_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples are where a user starts the command."""
    monkeypatch.chdir(Path(__file__).parent.parent / "examples")


SHORT = ("train.total_nimg=64", "train.batch=16", "train.tensorboard=false", "network.width=8")


def command(*words: str, code: int = 0) -> None:
    assert cli.main([*words]) == code


def test_own_sampler(in_examples: None, tmp_path: Path) -> None:
    """Half the steps of Euler's method, the same evaluations, and much nearer to a fine solution."""
    assert run("own_sampler", num=2, steps=2).shape == (2, 1, 8, 8)
    teacher = trigflow.load("digits-teacher")

    def x_0(sampler: str, steps: int) -> torch.Tensor:
        states = teacher.trajectory(4, steps=steps, sampler=sampler, labels=3)
        assert (
            states.nfe == {"own_sampler:midpoint": 2 * steps, "ddim": steps, "heun": 2 * steps - 1}[sampler]
        )
        return states.states[-1]

    fine = x_0("heun", 64)
    assert (x_0("own_sampler:midpoint", 16) - fine).norm() < 0.5 * (x_0("ddim", 32) - fine).norm()
    sample = ["sample", "digits-teacher", "--num", "2", "--steps", "3", "--out", str(tmp_path / "a.npz")]
    command(*sample, "--sampler", "own_sampler:even_ddim")
    assert (tmp_path / "a.npz").exists()


def test_own_recipe_and_data(in_examples: None, tmp_path: Path) -> None:
    samples = run("own_recipe", out=tmp_path / "run", overrides=SHORT)
    assert samples.shape == (64, 2)
    command("train", "own_recipe:spiral_teacher", *SHORT, "data.arms=3", "--out", str(tmp_path / "three"))
    assert trigflow.load(tmp_path / "three").num_classes == 3
    file = str(tmp_path / "three" / "recipe.json")
    again = tmp_path / "again"
    command("train", file, "--out", str(again), code=2)  # it names code, which nobody has trusted
    assert not again.exists()
    command("train", file, "--trust-code", "--out", str(again))
    one, other = (trigflow.load(folder) for folder in (tmp_path / "three", again))
    assert torch.equal(one.sample(3), other.sample(3))
    command("plan", file, "--trust-code", code=0)


def test_a_recipe_file_is_data(in_examples: None, tmp_path: Path) -> None:
    folder = trigflow.train(recipes.get("mixture2d-teacher", SHORT), tmp_path / "run", device="cpu")
    file = str(folder / "recipe.json")
    assert recipes.get(file) == recipes.get("mixture2d-teacher", SHORT)
    assert recipes.get(file, ["train.seed=3"]).train.seed == 3
    own = recipes.get(file, ["network=own_flow_map:FlowMap"])  # the user's own words
    assert own.network.name == "own_flow_map:FlowMap"
    code = tmp_path / "code.json"
    code.write_text(Path(file).read_text().replace('"mlp"', '"nowhere:Net"'))
    with pytest.raises(UserError, match="--trust-code"):  # named as something else, it is still the file's
        recipes.get(str(code), ["name=nowhere:Net"])
    (tmp_path / "list.json").write_text("[]")
    for name, message in (
        (str(tmp_path / "none.json"), "none.json"),
        (str(tmp_path / "list.json"), "list.json"),
        ("own_recipe:nothing", "no class or function 'nothing'"),
        ("own_recipe:spirals", "returns Dataset: return a trigflow.Recipe"),
        ("mixture2d-techer", "did you mean"),
    ):
        with pytest.raises(UserError, match=message):
            recipes.get(name)


def test_own_objective_with_two_networks(in_examples: None, tmp_path: Path) -> None:
    """In seconds the samples of one step are nearly as near to the data as other data is (0.042; found: 0.059)."""
    steps = ("train.total_nimg=204800", "train.batch=256", "optimizers.net.update_period=2", *SHORT[2:3])
    samples = run("own_objective", out=tmp_path / "run", overrides=(*steps, "network.width=32"))
    data = mixture2d().sample(1000, 0).float()
    assert sliced_wasserstein(samples, data) < 0.09 < sliced_wasserstein(0.5 * torch.randn(1000, 2), data)
    own = ["objective=own_objective:DistributionMatching", "teacher=exact", "init=scratch"]
    command("train", "mixture2d-scd", *own, *SHORT, "--out", str(tmp_path / "two"))
    assert trigflow.load(tmp_path / "two").sample(2, steps=1).shape == (2, 2)


def test_own_flow_map(in_examples: None, tmp_path: Path) -> None:
    steps = ("train.total_nimg=64", "train.batch=16", "train.tensorboard=false")
    samples = run("own_flow_map", out=tmp_path / "run", overrides=steps)
    assert samples.shape == (1000, 2) and samples.isfinite().all()
    with pytest.raises(UserError, match="--trust-code"):
        trigflow.load(tmp_path / "run")
    out = tmp_path / "samples.npz"
    command("sample", str(tmp_path / "run"), "--trust-code", "--steps", "3", "--num", "5", "--out", str(out))
    model = trigflow.load(tmp_path / "run", trust_code=True)
    assert np.allclose(np.load(out)["samples"], model.sample(5, steps=3).numpy())
    # To a sampler that knows no second time it is a consistency model: s is 0.
    x_T = 0.5 * torch.randn(5, 2)
    t = torch.full((5,), 1.5)
    zero = model.precond.velocity(x_T, t, s=torch.zeros(5))
    torch.testing.assert_close(model.precond.velocity(x_T, t), zero)
    with pytest.raises(UserError, match="needs a network with a second time"):
        trigflow.load("digits").sample(1, sampler="flow_map")
    command("doctor", "own_flow_map:FlowMap", "--shape", "2")
    command("doctor", str(tmp_path / "run"), "--trust-code")
    again = ["objective=own_flow_map:FollowTheTeacher", "teacher=exact", f"init={tmp_path / 'run'}", *steps]
    own = ["sampling.sampler=flow_map", "sampling.flow_map_num=0", "network=own_flow_map:FlowMap"]
    command("train", "mixture2d-scd", *again, *own, "--out", str(tmp_path / "more"))
    bench = ["--random", "--steps", "1", "--rounds", "1", "--device", "cpu"]
    command("bench", "mixture2d-scd", *again[:2], *own, "init=scratch", *bench)


def test_a_teacher_with_a_sampler_of_its_own_is_trusted_or_not(in_examples: None, tmp_path: Path) -> None:
    own = ("sampling.sampler=own_sampler:midpoint", *SHORT)
    teacher = trigflow.train(recipes.get("mixture2d-teacher", own), tmp_path / "teacher", device="cpu")
    student = ["train", "mixture2d-scd", f"teacher={teacher}", "sampling.flow_map_num=0", *SHORT]
    command(*student, "--out", str(tmp_path / "no"), code=2)
    assert not (tmp_path / "no").exists()
    command(*student, "--trust-code", "--out", str(tmp_path / "yes"))
