"""Files are whole or absent, damage is noticed, and weights of another shape are named."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from trigflow.models.card import ModelCard
from trigflow.models.shipped import SHIPPED, model_folder
from trigflow.models.storage import load_model, new_precond, save_model
from trigflow.recipes.schema import PrecondConfig, SamplingConfig
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.system.files import DamagedFile, read_json, write_atomically
from trigflow.system.tensors import load_tensors, read_state, write_state
from trigflow.training.checkpoints import CheckpointFolder

TENSORS = {
    "a/weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor(7, dtype=torch.int64),
    "c": torch.tensor([1.5], dtype=torch.bfloat16),
    "empty": torch.zeros(0),
}
CARD = ModelCard(
    name="test",
    network=Component("mlp", {"width": 8, "depth": 1}),
    precond=PrecondConfig(),
    data_shape=(2,),
    num_classes=0,
    codec={"name": "identity", "sigma_data": 0.5},
    data="mixture2d",
    objective="diffusion",
    sampling=SamplingConfig(),
)


def test_state_round_trip(tmp_path: Path) -> None:
    write_state(tmp_path / "x.safetensors", TENSORS, {"nimg": 3, "rate": 0.1})
    tensors, state = read_state(tmp_path / "x.safetensors")
    assert state == {"nimg": 3, "rate": 0.1}
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == v.dtype for k, v in TENSORS.items())


def test_every_kind_of_damage_is_noticed(tmp_path: Path) -> None:
    """A flipped bit anywhere in header or data, and a cut at any place."""
    path = tmp_path / "x.safetensors"
    write_state(path, TENSORS, {"nimg": 3})
    content = path.read_bytes()
    damaged = [content[:length] for length in range(0, len(content), 7)] + [content + b"\0", b"other"]
    for place in range(len(content)):
        # The padding after the header's JSON says nothing.
        if content[place : place + 1] != b" ":
            damaged.append(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    unnoticed = 0
    for variant in damaged:
        path.write_bytes(variant)
        try:
            tensors, state = read_state(path)
        except DamagedFile:
            continue
        unnoticed += 1
        assert state == {"nimg": 3} and all(torch.equal(tensors[k], v) for k, v in TENSORS.items())
    assert unnoticed == 0


def test_the_newest_damaged_one_falls_back(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep=3)
    for nimg in (10, 20, 30, 40):
        folder.save(nimg, TENSORS, {"nimg": nimg})
    assert [path.name for path in folder.paths()] == [f"nimg-{n:012d}.safetensors" for n in (40, 30, 20)]
    newest, second, oldest = folder.paths()
    newest.write_bytes(newest.read_bytes()[:-3])
    content = bytearray(second.read_bytes())
    content[-1] ^= 1
    second.write_bytes(content)
    notes: list[str] = []
    found = folder.load_newest(notes.append)
    assert found is not None and found[1] == {"nimg": 20}
    assert len(notes) == 2
    assert newest.name in notes[0] and "cannot be decoded" in notes[0]
    assert second.name in notes[1] and "digest is wrong" in notes[1]
    oldest.write_bytes(b"")
    with pytest.raises(UserError, match="every checkpoint"):
        folder.load_newest(notes.append)


def test_no_checkpoint_is_no_mistake(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).load_newest() is None


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".nimg-000000000010.safetensors.123.tmp"
    left.write_bytes(b"half")
    folder = CheckpointFolder(tmp_path)
    assert folder.paths() == []
    folder.save(10, TENSORS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["nimg-000000000010.safetensors"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def no_space(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(UserError, match=r"cannot write .*: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        write_atomically(tmp_path / "none" / "x", b"")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="does not hold JSON"):
        read_json(tmp_path / "x.json")


def test_weights_that_do_not_fit_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    good = {name: torch.randn_like(tensor) for name, tensor in net.state_dict().items()}
    load_tensors(net, good, "here")
    assert torch.equal(net[1].weight, good["1.weight"])
    for change, message in (
        (
            {"0.bias": torch.zeros(4)},
            r"here does not fit the network: '0\.bias' has the shape \(4,\), .* \(3,\)",
        ),
        ({"more": torch.zeros(1)}, "has no tensor 'more'"),
    ):
        with pytest.raises(UserError, match=message):
            load_tensors(net, good | change, "here")
    with pytest.raises(UserError, match=r"it has no tensor '1\.bias'"):
        load_tensors(net, {k: v for k, v in good.items() if k != "1.bias"}, "here")


# Models


def test_model_round_trip(tmp_path: Path) -> None:
    net = new_precond(CARD)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    save_model(tmp_path, net, CARD)
    loaded, card = load_model(tmp_path)
    x_t, t = torch.randn(4, 2), torch.rand(4)
    assert card == CARD
    assert torch.equal(loaded(x_t, t), net(x_t, t))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_models_that_cannot_be_loaded_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path)
    save_model(tmp_path, new_precond(CARD), CARD)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:100])
    with pytest.raises(UserError, match="is damaged"):
        load_model(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="cannot read"):
        load_model(tmp_path)
    weights.write_bytes(content)
    wider = replace(CARD, network=Component("mlp", {"width": 16, "depth": 1}))
    (tmp_path / "model.json").write_text(json.dumps(read_json(tmp_path / "model.json") | {"nimg": "many"}))
    with pytest.raises(UserError, match=r"model\.json\.nimg"):
        load_model(tmp_path)
    save_model(tmp_path, new_precond(CARD), wider)
    with pytest.raises(UserError, match=r"does not fit the network: 'network\."):
        load_model(tmp_path)


def test_a_models_weights_know_their_digest(tmp_path: Path) -> None:
    """Flipped bits are told; a file without a digest, of an older version or of others, loads as it is."""
    net = new_precond(CARD)
    save_model(tmp_path, net, CARD)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors is damaged: its digest is wrong"):
        load_model(tmp_path)
    safetensors.torch.save_file(net.state_dict(), weights)
    load_model(tmp_path)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_have_a_digest(name: str) -> None:
    """To give them one: save_model(folder, *load_model(folder))."""
    read_state(model_folder(name) / "model.safetensors")
