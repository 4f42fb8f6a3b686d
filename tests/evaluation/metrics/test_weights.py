"""Published weights: read as data alone, and every mistake is told in one line."""

from __future__ import annotations

import hashlib
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from trigflow.evaluation.metrics import PUBLISHED, load_features
from trigflow.evaluation.metrics.weights import fill, read_weights
from trigflow.system.errors import UserError

STATE = nn.Linear(2, 3).state_dict()


class Code:
    """A pickle that would run a command."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_state_dict_in_each_of_its_forms(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with_prefix = {f"module.{name}": value for name, value in STATE.items()}
    for content in (STATE, {"state_dict": with_prefix, "best": 91.7}):
        torch.save(content, path)
        found = read_weights(path, "the right one")
        assert found.keys() == STATE.keys() and torch.equal(found["weight"], STATE["weight"])
    save_file(STATE, tmp_path / "weights.safetensors")
    assert read_weights(tmp_path / "weights.safetensors", "the right one").keys() == STATE.keys()


def test_nothing_in_a_file_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Code()}, "code.pth")
    Path("code.pkl").write_bytes(pickle.dumps(Code()))
    with zipfile.ZipFile("script.pt", "w") as archive:  # the layout of a TorchScript archive
        archive.writestr("script/data.pkl", pickle.dumps(Code()))
        archive.writestr("script/constants.pkl", pickle.dumps(()))
    for name, complaint in (("code.pth", "code"), ("code.pkl", "code"), ("script.pt", "TorchScript archive")):
        with pytest.raises(UserError, match=f"{complaint}.*give the right one") as caught:
            read_weights(Path(name), "the right one")
        assert "\n" not in str(caught.value)
    assert not Path("ran").exists()


def test_a_name_that_tells_the_digest_is_believed(tmp_path: Path) -> None:
    """As that of resnet20-12fca82f.th; a flipped bit in a tensor would show nowhere else."""
    torch.save(STATE, tmp_path / "net.th")
    digest = hashlib.sha256((tmp_path / "net.th").read_bytes()).hexdigest()
    right, wrong = (tmp_path / f"net-{start}.th" for start in (digest[:8], "0123abcd"))
    for path in (right, wrong):
        path.write_bytes((tmp_path / "net.th").read_bytes())
    assert read_weights(right, "the right one").keys() == STATE.keys()
    with pytest.raises(UserError, match=rf"SHA-256 begins with 0123abcd, and it does with {digest[:8]};"):
        read_weights(wrong, "the right one")


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_and_foreign_files(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights.{suffix}"
    with pytest.raises(UserError, match="there is no file"):
        read_weights(path, "the right one")
    path.write_bytes(b"broken")
    with pytest.raises(UserError, match=r"damaged.*give the right one"):
        read_weights(path, "the right one")


def test_a_plain_pickle_is_told_in_one_line(tmp_path: Path) -> None:
    """Without the warning that torch has of it, which would be an error here."""
    (tmp_path / "weights.pth").write_bytes(pickle.dumps({"a": os.getcwd}, protocol=4))
    with pytest.raises(UserError, match=r"holds code, which is not run \(UnpicklingError\)"):
        read_weights(tmp_path / "weights.pth", "the right one")


@pytest.mark.parametrize("content", [[1, 2], {}, {"weight": 3}, {"state_dict": {}}])
def test_a_file_without_a_state_dict(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"state_dict.*give the right one"):
        read_weights(tmp_path / "weights.pth", "the right one")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"more": torch.zeros(1)}, "'more' is unknown"),
        ({"bias": torch.zeros(4)}, r"\(4,\) in place of \(3,\)"),
        ({"bias": torch.full((3,), float("nan"))}, "not finite"),
    ],
)
def test_weights_that_do_not_fit(change: dict[str, torch.Tensor], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        fill(nn.Linear(2, 3), STATE | change, Path("x.pth"), "the right one")
    with pytest.raises(UserError, match="no tensor 'weight'"):
        fill(nn.Linear(2, 3), {"bias": STATE["bias"]}, Path("x.pth"), "the right one")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_name_alone_says_which_file_it_needs(name: str) -> None:
    entry = PUBLISHED[name]
    with pytest.raises(UserError) as caught:
        load_features(name)
    told = str(caught.value)
    assert entry.file in told and entry.address in told and f"{name}=FILE" in told and "\n" not in told
    with pytest.raises(UserError, match="there is no file"):
        load_features(f"{name}=nowhere.pth")
