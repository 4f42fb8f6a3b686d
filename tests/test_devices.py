"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from trigflow.devices import resolve_device
from trigflow.errors import UserError


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
    with pytest.raises(UserError, match="no device 'cuda': take --device auto"):
        resolve_device("cuda")
    with pytest.raises(UserError, match="did you mean 'cuda'"):
        resolve_device("cuba")
    with pytest.raises(UserError, match="unknown device 'cpu:x'"):
        resolve_device("cpu:x")
