"""The error of a flow map, and the sliced Wasserstein distance, where both are known in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trigflow import recipes
from trigflow.core.flow_map import FlowMapError
from trigflow.core.oracles import Gaussian
from trigflow.evaluation.evaluate import evaluate
from trigflow.evaluation.metrics import sliced_wasserstein
from trigflow.models.model import load
from trigflow.system.errors import UserError
from trigflow.training.loop import train

CPU = torch.device("cpu")


def test_the_exact_map_has_no_error_and_a_wrong_one_its_distance() -> None:
    oracle = Gaussian(torch.tensor([1.0, -2.0]), 0.3, sigma_data=0.5)
    measure = FlowMapError.measure(oracle, (2,), 0.5, 500, CPU)
    assert measure(oracle.flow_map)["flow_map_rms"] < 1e-6
    shift = torch.tensor([0.3, 0.4])  # of length 0.5, which is sigma_data

    def shifted(x: Tensor, t: Tensor) -> Tensor:
        return oracle.flow_map(x, t) + shift

    assert measure(shifted) == pytest.approx({"flow_map_median": 1.0, "flow_map_rms": 1.0}, rel=1e-5)

    def half_wrong(x: Tensor, t: Tensor) -> Tensor:
        return oracle.flow_map(x, t) + shift * (torch.arange(len(x)) < 100)[:, None]

    error = measure(half_wrong)
    assert error["flow_map_median"] < 1e-6
    assert error["flow_map_rms"] == pytest.approx(math.sqrt(0.2), rel=1e-5)


def test_the_noises_are_those_that_a_model_samples_from(tmp_path: Path) -> None:
    folder = tiny_student(tmp_path)
    model = load(folder, "cpu")
    measure = FlowMapError.measure(Gaussian(torch.zeros(2), 0.5), (2,), 0.5, 20, CPU)
    predictions = model.predict_x_0(measure.noises, float(measure.t[0]))
    torch.testing.assert_close(predictions, model.sample(20, steps=1, seed=0))


def test_no_noises() -> None:
    with pytest.raises(UserError, match="1 noise or more"):
        FlowMapError.measure(Gaussian(torch.zeros(2), 0.5), (2,), 0.5, 0, CPU)


def test_sliced_wasserstein_of_a_shift() -> None:
    """A shift by m moves each projection by m . theta: the mean square is |m|^2 / D."""
    points = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
    shift = torch.tensor([1.0, 2.0, -2.0])
    distance = sliced_wasserstein(points, points[torch.randperm(2000)] + shift, projections=5_000)
    assert distance == pytest.approx(math.sqrt(9 / 3), rel=0.02)
    assert sliced_wasserstein(points, points.flip(0)) == 0


def test_sliced_wasserstein_of_two_widths() -> None:
    """Between N(0, a^2) and N(0, b^2) on a line: |a - b|."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(100_000, 1, generator=generator)
    b = 3 * torch.randn(100_000, 1, generator=generator)
    assert sliced_wasserstein(a, b, projections=4) == pytest.approx(2.0, rel=0.02)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (0, 2)])
def test_sliced_wasserstein_wants_as_many_points(shape: tuple[int, int]) -> None:
    other = torch.zeros(2, 2) if shape[0] else torch.zeros(0, 2)
    with pytest.raises(UserError, match="as many points"):
        sliced_wasserstein(torch.zeros(shape), other)


TINY = (
    "data.n=100",
    "network.width=16",
    "network.depth=1",
    "train.batch=32",
    "train.total_nimg=128",
    "train.log_nimg=64",
    "train.tensorboard=false",
    "sampling.flow_map_num=50",
)


def tiny_student(folder: Path, *overrides: str) -> Path:
    recipe = recipes.get("mixture2d-scd", [*TINY, *overrides])
    return train(recipe, folder / "run", device="cpu", progress=False)


def test_a_run_logs_it_and_the_report_tells_it(tmp_path: Path) -> None:
    folder = tiny_student(tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    report = evaluate(folder, steps=[1, 2], num=50, seeds=1, device="cpu", progress=False)
    one, two = report["students"]
    for name in ("flow_map_median", "flow_map_rms"):
        assert [line["nimg"] for line in lines if name in line] == [64, 128]
        assert lines[-1][name] == pytest.approx(one[name], rel=1e-6)  # the averaged weights are the model
        assert name not in two  # a second step starts from new noise
    assert one["sliced_wasserstein"] > 0


def test_a_finite_set_is_exact_only_as_a_teacher(tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "points.npy", np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32))
    small = [override for override in TINY if not override.startswith("data.")]
    recipe = recipes.get("mixture2d-sct", [*small, f"data={tmp_path / 'points.npy'}"])
    with pytest.raises(UserError, match=r"sampling.flow_map_num = 50.*teacher=exact"):
        train(recipe, tmp_path / "sct", device="cpu", progress=False)
    assert not (tmp_path / "sct").exists()
    recipe = recipes.get("mixture2d-scd", [*small, f"data={tmp_path / 'points.npy'}"])
    folder = train(recipe, tmp_path / "scd", device="cpu", progress=False)
    assert "flow_map_rms" in (folder / "metrics.jsonl").read_text()
