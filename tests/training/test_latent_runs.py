"""Latent models from end to end: images -> latents -> a teacher and its student -> images, and their scores."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_autoencoders import write_kl

from trigflow import load, recipes
from trigflow.commands import cli
from trigflow.data import load_collection, load_data
from trigflow.data.autoencoder import load_autoencoder
from trigflow.data.codecs import LatentCodec, codec_from_json
from trigflow.data.prepare.encode import Encoding, encode
from trigflow.evaluation.evaluate import evaluate
from trigflow.models.storage import read_card
from trigflow.system.errors import UserError
from trigflow.training.loop import train
from trigflow.training.run_folder import reconstruct

CPU = torch.device("cpu")
COUNT, SIZE = 40, 8
TINY = (
    *("network=mlp", "network.width=16", "network.depth=1", "train.batch=16", "train.total_nimg=32"),
    *("train.log_nimg=16", "train.tensorboard=false", "train.synthetic=0", "sampling.grid_nimg=0"),
    "train.label_dropout=0.1",
)
CIFAR = next(
    (
        up / "shared" / "data" / "cifar10-train-32x32.zip"
        for up in Path(__file__).parents
        if (up / "shared" / "data" / "cifar10-train-32x32.zip").is_file()
    ),
    Path(),
)


def write_images(folder: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), dtype=np.uint8)
    np.savez(folder / "images.npz", images=images, labels=np.arange(COUNT) % 3)
    return folder / "images.npz"


def write_latents(images: Path, vae: Path, out: Path) -> Path:
    autoencoder = load_autoencoder(vae, CPU)
    encode(load_collection(str(images)), autoencoder, (vae, str(vae)), out, Encoding(), progress=False)
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images.npz, vae/, latents/, teacher/ and student/, trained for two steps (not to be written to)."""
    folder = tmp_path_factory.mktemp("latents")
    write_latents(write_images(folder), write_kl(folder / "vae"), folder / "latents")
    with pytest.MonkeyPatch.context() as patch:
        # A training asks nobody for weights.
        patch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
        own = [*TINY, f"data={folder / 'latents'}"]
        teacher = recipes.get("digits-teacher", [*own, "sampling.steps=2", "sampling.grid_nimg=32"])
        train(teacher, folder / "teacher", device="cpu", progress=False)
        scd = [*own, f"teacher={folder / 'teacher'}", "train.label_dropout=0"]
        train(recipes.get("digits-scd", scd), folder / "student", device="cpu", progress=False)
    return folder


def moved(place: Path, tmp_path: Path, name: str = "student") -> Path:
    """A model alone, far from its data and its teacher."""
    return Path(shutil.copytree(place / name, tmp_path / name))


# Training


def test_the_model_has_the_codec_and_the_autoencoder(place: Path) -> None:
    for name in ("teacher", "student"):
        card = read_card(place / name)
        assert card.data_shape == (4, SIZE // 2, SIZE // 2) and card.num_classes == 3
        assert codec_from_json(card.codec) == load_data(str(place / "latents")).codec
        for file in (place / "vae").iterdir():
            assert (place / name / "vae" / file.name).read_bytes() == file.read_bytes()
    with Image.open(place / "teacher" / "samples" / "nimg-000000000032.png") as grid:
        assert grid.mode == "RGB"  # drawn while it trained


def test_a_run_draws_the_same_whatever_its_microbatch(place: Path, tmp_path: Path) -> None:
    losses = []
    for size in (16, 4):
        own = [*TINY, f"data={place / 'latents'}", f"train.microbatch={size}"]
        run = train(
            recipes.get("digits-teacher", own), tmp_path / f"run-{size}", device="cpu", progress=False
        )
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_of_another_autoencoder_is_no_teacher(place: Path, tmp_path: Path) -> None:
    other = write_latents(place / "images.npz", write_kl(tmp_path / "vae", seed=1), tmp_path / "latents")
    scd = [*TINY, f"data={other}", f"teacher={place / 'teacher'}"]
    with pytest.raises(UserError, match="does not fit latents: its autoencoder is"):
        train(recipes.get("digits-scd", scd), tmp_path / "student", device="cpu", progress=False)
    assert not (tmp_path / "student").exists()


def test_samples_of_a_latent_teacher_can_be_the_data(place: Path, tmp_path: Path) -> None:
    own = [*TINY, f"data={place / 'latents'}", f"teacher={place / 'teacher'}", "train.label_dropout=0"]
    run = train(
        recipes.get("digits-scd", [*own, "train.synthetic=20"]), tmp_path / "r", device="cpu", progress=False
    )
    assert read_card(run).nimg == 32


def test_a_latent_student_takes_the_scale_of_guidance(place: Path, tmp_path: Path) -> None:
    scales = ("network.guidance_input=true", "objective.guidance_scale=[1,2]", "objective.warmup=0")
    own = (
        "train.total_nimg=640",
        "train.label_dropout=0",
        "optimizer.lr=0.05",
        f"teacher={place / 'teacher'}",
    )
    recipe = recipes.get("digits-scd", [f"data={place / 'latents'}", *TINY, *scales, *own])
    model = load(train(recipe, tmp_path / "run", device="cpu", progress=False), "cpu")
    one, two = (model.sample(8, guidance_scale=scale) for scale in (1.0, 2.0))
    assert one.shape == (8, 3, SIZE, SIZE) and not torch.equal(one, two)
    with pytest.raises(UserError, match="was trained with scales of 1 to 2"):
        model.sample(1, guidance_scale=2.5)


def test_training_needs_no_diffusers(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    load_autoencoder.cache_clear()
    recipe = recipes.get("digits-teacher", [*TINY, f"data={place / 'latents'}"])
    run = train(recipe, tmp_path / "r", device="cpu", progress=False)
    with pytest.raises(UserError, match=r"pip install 'trigflow\[latents\]'"):
        load(run, "cpu").sample(1)
    assert load(run, "cpu").sample(1, latents=True).shape == (1, 4, SIZE // 2, SIZE // 2)


def test_without_an_autoencoder_latents_train_but_are_not_drawn(place: Path, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(place / "latents", tmp_path / "latents"))
    shutil.rmtree(alone / "vae")
    own = [*TINY, f"data={alone}"]
    with pytest.raises(UserError, match=r"grid_nimg = 16: there is no autoencoder in .*set it to 0"):
        train(
            recipes.get("digits-teacher", [*own, "sampling.grid_nimg=16"]),
            tmp_path / "r",
            device="cpu",
            progress=False,
        )
    run = train(recipes.get("digits-teacher", own), tmp_path / "r", device="cpu", progress=False)
    with pytest.raises(UserError, match="--vae NAME_OR_PATH names it"):
        load(run, "cpu").sample(1)
    assert load(run, "cpu", vae=str(place / "vae")).sample(1).shape == (1, 3, SIZE, SIZE)


def test_a_changed_autoencoder_is_not_copied_to_a_model(place: Path, tmp_path: Path) -> None:
    changed = Path(shutil.copytree(place / "latents", tmp_path / "latents"))
    shutil.rmtree(changed / "vae")
    write_kl(changed / "vae", seed=1)
    with pytest.raises(UserError, match="damaged or another one"):
        train(
            recipes.get("digits-teacher", [*TINY, f"data={changed}"]),
            tmp_path / "r",
            device="cpu",
            progress=False,
        )


def test_a_reconstructed_average_takes_the_autoencoder_along(place: Path, tmp_path: Path) -> None:
    own = [*TINY, f"data={place / 'latents'}", "ema.kind=power", "ema.ema_std=[0.05,0.1]"]
    run = train(
        recipes.get("digits-teacher", [*own, "ema.snapshot_nimg=16"]),
        tmp_path / "r",
        device="cpu",
        progress=False,
    )
    reconstruct(run, tmp_path / "new", 0.08)
    assert load(tmp_path / "new", "cpu").sample(1).shape == (1, 3, SIZE, SIZE)


# Sampling


def test_samples_are_images_also_far_from_the_data(place: Path, tmp_path: Path) -> None:
    model = load(moved(place, tmp_path), "cpu")
    images, latents = model.sample(5), model.sample(5, latents=True)
    assert images.shape == (5, *model.sample_shape) and images.dtype == torch.uint8
    assert model.sample_shape == (3, SIZE, SIZE)
    assert latents.shape == (5, 4, SIZE // 2, SIZE // 2) and latents.dtype == torch.float32
    assert isinstance(model.codec, LatentCodec)
    assert torch.equal(load_autoencoder(place / "vae", CPU).images(latents), images)
    assert (model.sample(5, batch=2).int() - images.int()).abs().max() <= 1
    with pytest.raises(UserError, match="is no latent model: leave latents out"):
        load("digits", "cpu").sample(1, latents=True)
    with pytest.raises(UserError, match="does not use the autoencoder"):
        load("digits", "cpu", vae=str(place / "vae"))


def test_the_command_samples(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(moved(place, tmp_path))
    for name, words in (("s.png", []), ("s.npz", []), ("l.npz", ["--latents"])):
        assert cli.main(["sample", run, "--num", "4", "--out", str(tmp_path / name), *words]) == 0
    with Image.open(tmp_path / "s.png") as grid:
        assert grid.mode == "RGB"
    with np.load(tmp_path / "s.npz") as images, np.load(tmp_path / "l.npz") as latents:
        assert images["samples"].shape == (4, 3, SIZE, SIZE) and images["samples"].dtype == np.uint8
        assert latents["samples"].shape == (4, 4, SIZE // 2, SIZE // 2)
        assert images["labels"].tolist() == latents["labels"].tolist()
    capsys.readouterr()
    assert cli.main(["sample", run, "--out", str(tmp_path / "l.png"), "--latents"]) == 2
    assert "latents cannot be drawn" in capsys.readouterr().err
    other = write_kl(tmp_path / "other", seed=1)
    assert cli.main(["sample", run, "--out", str(tmp_path / "o.png"), "--vae", str(other)]) == 2
    error = capsys.readouterr().err
    assert "damaged or another one" in error and error.count("\n") == 1
    assert not (tmp_path / "o.png").exists()


# Scores


def scored(place: Path, **options: object) -> dict[str, object]:
    settings = {"steps": [1], "num": 16, "seeds": 1, "device": "cpu", "progress": False}
    return evaluate(str(place / "student"), **(settings | options))  # type: ignore[arg-type]


def test_by_default_the_reference_is_decoded_and_says_so(place: Path, tmp_path: Path) -> None:
    report = scored(place, out=tmp_path / "report")
    assert report["reference"]["what"] == "decoded latents"  # type: ignore[index]
    assert report["score"] == "FD-pixels to decoded latents"
    notes = " ".join(report["notes"])  # type: ignore[arg-type]
    assert "Reference: decoded latents, not real images" in notes and "--data IMAGES" in notes
    assert "decoding included" in notes
    text = (tmp_path / "report" / "report.md").read_text()
    assert "40 decoded latents are the reference" in text and "decoded latents, halves of 20" in text
    assert "real samples are the reference" not in text and "real data, halves" not in text


def test_real_images_and_decoded_ones_beside_them(place: Path, tmp_path: Path) -> None:
    """Against real images the row of decoded latents is the autoencoder's own error."""
    report = scored(
        place, data=str(place / "images.npz"), test_data=str(place / "latents"), out=tmp_path / "report"
    )
    assert report["reference"]["what"] == "real samples"  # type: ignore[index]
    assert report["score"] == "FD-pixels"
    notes = " ".join(report["notes"])  # type: ignore[arg-type]
    assert "Reference: the real images of images" in notes and "--test-data LATENTS" in notes
    text = (tmp_path / "report" / "report.md").read_text()
    assert "40 real samples are the reference" in text and "| decoded latents, 40" in text
    assert "no model was trained on" not in text
    reconstructed = load_data(str(place / "latents"))
    images = load_data(str(place / "images.npz"))
    assert reconstructed.sample_shape == images.data_shape
    decoded = reconstructed.samples(reconstructed.data).double().flatten(1) / 255
    plain = images.data.double().flatten(1) / 255
    known = frechet(plain, decoded)
    assert report["real_test"]["fd"] == pytest.approx(known, rel=1e-4)  # type: ignore[index]


def frechet(one: torch.Tensor, other: torch.Tensor) -> float:
    linalg = pytest.importorskip("scipy.linalg")
    means = [x.mean(0) for x in (one, other)]
    covs = [torch.cov(x.T).numpy() for x in (one, other)]
    root = linalg.sqrtm(covs[0] @ covs[1] + 1e-12 * np.eye(len(covs[0]))).real
    return float((means[0] - means[1]).square().sum() + np.trace(covs[0] + covs[1] - 2 * root))


def test_images_of_another_size_are_refused(place: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 3, 16, 16), dtype=np.uint8)
    np.savez(tmp_path / "large.npz", images=images)
    with pytest.raises(UserError, match=r"large has the shape \(3, 16, 16\), model .* \(3, 8, 8\)"):
        scored(place, data=str(tmp_path / "large.npz"))


def test_a_teacher_of_another_autoencoder_is_refused(place: Path, tmp_path: Path) -> None:
    other = write_latents(place / "images.npz", write_kl(tmp_path / "vae", seed=1), tmp_path / "latents")
    run = train(
        recipes.get("digits-teacher", [*TINY, f"data={other}"]), tmp_path / "r", device="cpu", progress=False
    )
    with pytest.raises(UserError, match="have different autoencoders"):
        scored(place, teacher=str(run))


def test_pixels_of_large_images_are_refused(place: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "large.npy", np.random.default_rng(0).integers(0, 256, (6, 3, 128, 128), np.uint8))
    out = write_latents(tmp_path / "large.npy", place / "vae", tmp_path / "latents")
    own = [*TINY, "train.label_dropout=0", f"data={out}"]
    run = train(recipes.get("digits-teacher", own), tmp_path / "r", device="cpu", progress=False)
    with pytest.raises(UserError, match="49152 numbers, too many for a covariance: choose other --features"):
        evaluate(str(run), num=4, device="cpu", progress=False)


# All of it, with an autoencoder that has learned something


def natural(folder: Path, count: int) -> Path:
    """Pictures in a folder: of CIFAR-10 where it is, else blurred noise."""
    folder.mkdir()
    if CIFAR.name:
        with zipfile.ZipFile(CIFAR) as archive:
            for name in [name for name in sorted(archive.namelist()) if name.endswith(".png")][:count]:
                (folder / Path(name).name).write_bytes(archive.read(name))
        return folder
    random = np.random.default_rng(0)
    for row in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        coarse.resize((32, 32), Image.Resampling.BICUBIC).save(folder / f"{row:05d}.png")
    return folder


def fitted_autoencoder(images: torch.Tensor, folder: Path, steps: int) -> Path:
    """A small AutoencoderKL after some steps of plain least squares."""
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(write_kl(folder), low_cpu_mem_usage=False).train()
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(steps):
        pixels = images[torch.randint(len(images), (32,))].float() / 127.5 - 1
        posterior = vae.encode(pixels).latent_dist
        loss = (vae.decode(posterior.sample()).sample - pixels).square().mean() + 1e-6 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_from_a_folder_of_pictures_to_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command alone, but for the autoencoder: the samples are smooth as pictures are, where noise's are not."""
    monkeypatch.chdir(tmp_path)
    natural(tmp_path / "pictures", 600)
    images = load_data("pictures").data
    fitted_autoencoder(images, tmp_path / "vae", 300)
    assert cli.main(["data", "encode", "pictures", "--vae", "vae", "--size", "32", "--out", "latents"]) == 0
    dataset = load_data("latents")
    assert dataset.data_shape == (4, 16, 16)
    decoded = dataset.samples(dataset.data).double()
    error = (decoded - images).square().mean().sqrt().item()
    assert error < 0.6 * images.double().std().item()  # the autoencoder has learned something
    network = ["network=unet", "network.channels=16", "network.channel_mult=[1,2]", "network.num_blocks=1"]
    train_line = ["train", "digits-teacher", "data=latents", *network, "train.batch=64", "optimizer.lr=3e-3"]
    short = [
        "train.total_nimg=6400",
        "train.log_nimg=640",
        "train.label_dropout=0",
        "train.tensorboard=false",
    ]
    drawn = ["sampling.grid_nimg=3200", "sampling.grid_count=9", "ema.ema_std=[0.1]"]
    assert cli.main([*train_line, *short, *drawn, "--out", "run", "--device", "cpu"]) == 0
    assert len(list((tmp_path / "run" / "samples").glob("*.png"))) == 2
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert cli.main(["sample", "run", "--num", "9", "--steps", "8", "--out", "samples.png"]) == 0
    with Image.open("samples.png") as grid:
        assert grid.mode == "RGB" and min(grid.size) >= 3 * 32
    model = load("run", "cpu")
    samples = model.sample(200, steps=8)
    assert samples.shape == (200, 3, 32, 32)
    assert isinstance(model.codec, LatentCodec) and model.decoder is not None
    noise = model.decoder.images(model.codec.decode(0.5 * torch.randn(200, 4, 16, 16)))
    assert roughness(samples) < 0.75 * roughness(noise)


def roughness(images: torch.Tensor) -> float:
    """Mean square of the difference of neighbours, over the variance."""
    pixels = images.double()
    return float((pixels[..., 1:] - pixels[..., :-1]).square().mean() / pixels.var())
