"""Autoencoders: found where the user says, read as data, whole, and those that made the latents."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from small_autoencoders import write_dc, write_kl

from trigflow.commands import cli
from trigflow.data.autoencoder import Decoder, copy_autoencoder, find, load_autoencoder, weights_digest
from trigflow.system.errors import UserError

CPU = torch.device("cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_kl(tmp_path_factory.mktemp("autoencoders") / "kl")


# Where it is found


class Hub:
    """In the place of the hub: a cache that is empty until something is downloaded."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cached, self.asked = folder, False, []  # type: ignore[var-annotated]

    def __call__(self, repo: str, file: str, *, subfolder: str | None, local_files_only: bool) -> str:
        self.asked.append((repo, file, subfolder, local_files_only))
        if local_files_only and not self.cached:
            raise FileNotFoundError("not in the cache")
        if repo.startswith("nobody"):
            raise OSError("404 Client Error\nand more")
        self.cached = True
        return str(self.folder / file)


@pytest.fixture
def hub(kl: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    found = Hub(kl)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", found)
    return found


def test_a_name_on_the_hub_is_downloaded_once_and_said(
    kl: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find("owner/name") == (kl, "owner/name")
    assert (
        capsys.readouterr().err
        == "no folder and not in the cache: downloading the autoencoder owner/name from the hub\n"
    )
    assert find("hf:owner/name") == (kl, "owner/name")
    assert find(None) == (kl, "stabilityai/sd-vae-ft-mse")
    assert capsys.readouterr().err == ""
    assert find("owner/name/vae")[1] == "owner/name/vae"
    assert hub.asked[-1] == ("owner/name", WEIGHTS, "vae", True)


def test_nothing_is_downloaded_that_was_not_named(hub: Hub) -> None:
    with pytest.raises(UserError, match="--vae stabilityai/sd-vae-ft-mse downloads it"):
        find(None)
    assert all(local for *_, local in hub.asked)


def test_a_folder_is_never_looked_for_on_the_hub(kl: Path, hub: Hub, tmp_path: Path) -> None:
    assert find(str(kl)) == (kl, str(kl))
    pipeline = tmp_path / "pipeline"
    write_kl(pipeline / "vae")
    assert find(str(pipeline)) == (pipeline / "vae", str(pipeline))
    for name in ("nowhere", "./a/b", "/a/b", "../a", "a/b/c/d", "a b/c"):
        with pytest.raises(UserError, match="there is no autoencoder"):
            find(name)
    assert not hub.asked


def test_what_the_hub_answers_is_one_line(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"cannot get .*nobody/name .*OSError: 404 Client Error$"):
        find("nobody/name")


@pytest.mark.parametrize("library", ["diffusers", "huggingface_hub"])
def test_a_missing_library_is_named(
    library: str,
    kl: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    load_autoencoder.cache_clear()
    name = str(kl) if library == "diffusers" else "owner/name"
    assert cli.main(["data", "encode", "digits", "--vae", name, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip install 'trigflow[latents]'" in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


# What is read


def test_both_kinds_know_their_shapes(kl: Path, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 16, 8), dtype=torch.uint8)
    for folder, factor, certain in ((kl, 2, False), (write_dc(tmp_path / "dc"), 4, True)):
        autoencoder = load_autoencoder(folder, CPU)
        assert (autoencoder.factor, autoencoder.latent_channels, autoencoder.image_channels) == (factor, 4, 3)
        mean, std = autoencoder.moments(images)
        assert mean.shape == (3, 4, 16 // factor, 8 // factor) and (std is None) == certain
        decoded = autoencoder.images(mean)
        assert decoded.shape == images.shape and decoded.dtype == torch.uint8


def test_decoding_some_at_a_time_changes_nothing(kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    autoencoder, latents = load_autoencoder(kl, CPU), torch.randn(5, 4, 4, 4)
    together = autoencoder.images(latents)
    monkeypatch.setattr("trigflow.data.autoencoder._PIXELS", 128)  # two images of 8x8
    assert (autoencoder.images(latents).int() - together.int()).abs().max() <= 1
    with pytest.raises(UserError, match="not finite"):
        autoencoder.images(latents / 0)


def test_the_old_names_of_the_attention_are_known(kl: Path, tmp_path: Path) -> None:
    """Published weights, sd-vae-ft-mse's among them, still have those of diffusers before 0.18."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = safetensors.torch.load_file(kl / WEIGHTS)
    renamed = {}
    for name, tensor in tensors.items():
        for new, former in old.items():
            if "attentions" in name:
                name = name.replace(f".{new}.", f".{former}.")
        renamed[name] = tensor
    assert renamed.keys() != tensors.keys()
    (tmp_path / "config.json").write_bytes((kl / "config.json").read_bytes())
    safetensors.torch.save_file(renamed, tmp_path / WEIGHTS, {"format": "pt"})
    latents = torch.randn(1, 4, 4, 4)
    images = [load_autoencoder(folder, CPU).images(latents) for folder in (kl, tmp_path)]
    assert torch.equal(*images)


def without_a_tensor(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    del tensors["decoder.conv_in.weight"]
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def with_nan(folder: Path) -> None:
    tensors = safetensors.torch.load_file(folder / WEIGHTS)
    tensors["decoder.conv_in.bias"][0] = torch.nan
    safetensors.torch.save_file(tensors, folder / WEIGHTS, {"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor is missing": (without_a_tensor, "missing keys decoder.conv_in.weight"),
    "a number is not finite": (with_nan, "'decoder.conv_in.bias' holds numbers that are not finite"),
    "weights are cut": (cut, "is damaged"),
    "weights are empty": (lambda folder: (folder / WEIGHTS).write_bytes(b""), "is damaged"),
    "weights are foreign": (lambda folder: (folder / WEIGHTS).write_bytes(b"<html>" * 99), "is damaged"),
    "weights are a pickle": (
        lambda folder: (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin"),
        f"no {WEIGHTS}",
    ),
    "no description": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "the description is no JSON": (
        lambda folder: (folder / "config.json").write_text("{"),
        "does not hold JSON",
    ),
    "the description is a list": (lambda folder: (folder / "config.json").write_text("[]"), "no autoencoder"),
    "another kind": (config(_class_name="UNet2DModel"), "holds UNet2DModel: give one of"),
    "another size": (config(block_out_channels=[8, 32]), "is damaged"),
    "not 1 or 3 channels": (config(in_channels=2), "is damaged"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    damage, words = DAMAGE[name]
    folder = write_kl(tmp_path / "kl")
    damage(folder)
    with pytest.raises(UserError) as caught:
        load_autoencoder(folder, CPU)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


# That it is the one that made the latents


def test_another_autoencoder_is_refused(kl: Path, tmp_path: Path) -> None:
    other = write_kl(tmp_path / "other", seed=1)
    own = Decoder(kl, weights_digest(kl), "owner/name")
    assert own.images(torch.zeros(1, 4, 4, 4)).shape == (1, 3, 8, 8)
    wrong = Decoder(other, weights_digest(kl), "owner/name")
    for look in (wrong.load, wrong.check_digest):
        with pytest.raises(UserError, match=r"damaged or another one: .* owner/name that made the latents"):
            look()
    with pytest.raises(
        UserError, match=r"no autoencoder in .*--vae NAME_OR_PATH names it \(it was owner/name"
    ):
        Decoder(tmp_path / "gone", weights_digest(kl), "owner/name").load()


def test_a_copy_is_whole_and_made_once(kl: Path, tmp_path: Path) -> None:
    for _ in range(2):
        copy_autoencoder(kl, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["config.json", WEIGHTS]
    assert weights_digest(tmp_path / "copy") == weights_digest(kl)
    with pytest.raises(UserError, match="holds no autoencoder"):
        copy_autoencoder(tmp_path, tmp_path / "copy")
