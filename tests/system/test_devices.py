"""Names of devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY

import trigflow
from trigflow import recipes
from trigflow.evaluation.metrics.features import extract_features, load_features
from trigflow.system.devices import resolve_device, true_float32
from trigflow.system.errors import UserError
from trigflow.training.loop import train


def test_names_of_devices_that_are_there(device: torch.device) -> None:
    assert resolve_device(device.type) == device
    assert resolve_device(device) is device


def test_auto_prefers_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto").type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto").type == "cuda"
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match="no device 'cuda:2'"):
        resolve_device("cuda:2")


def test_mistakes_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no device 'cuda': use --device auto"):
        resolve_device("cuda")
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        resolve_device("cuba")
    with pytest.raises(UserError, match="unknown device 'cpu:x'"):
        resolve_device("cpu:x")


# Float32 while trigflow computes, and the caller's settings


def settings() -> list[object]:
    """Of torch, by both of its interfaces."""
    backends = torch.backends
    places = (backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul, backends.mkldnn.matmul)
    of_products = (torch.get_float32_matmul_precision(), backends.cuda.matmul.allow_tf32)
    return [backends.cudnn.allow_tf32, *of_products, *(place.fp32_precision for place in places)]


CALLERS: dict[str, Callable[[], object]] = {
    "default": lambda: None,
    "fast": lambda: torch.set_float32_matmul_precision("medium"),
    "fast convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", True),
    "exact": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest) -> Iterator[list[object]]:
    """The settings of a caller."""
    former = (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)
    CALLERS[request.param]()
    yield settings()
    torch.set_float32_matmul_precision(former[0])
    torch.backends.cudnn.allow_tf32 = former[1]


def test_the_caller_s_settings_are_left_alone(
    caller: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        assert resolve_device("cuda").type == "cuda"
    assert settings() == caller
    train(recipes.get("digits-teacher", TINY), tmp_path / "run", device="cpu", progress=False)
    assert settings() == caller
    samples = trigflow.load("digits", device="cpu").sample(2)
    extract_features(load_features("digits-classifier"), samples)
    assert settings() == caller


def test_float32_is_float32_where_trigflow_computes(
    caller: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[object]] = []
    model = trigflow.load("digits", device="cpu")
    model.precond.register_forward_hook(lambda *_: seen.append(settings()))
    model.sample(1, steps=1)
    exact = [False, "highest", False, *4 * ["ieee"]]
    assert seen == [exact]
    with pytest.raises(RuntimeError), true_float32():
        assert settings() == exact
        raise RuntimeError
    assert settings() == caller
