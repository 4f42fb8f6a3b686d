"""Latents on the disk: what the autoencoder says, whole or not at all, and drawn by (seed, image number)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_autoencoders import write_dc, write_kl

from trigflow.commands import cli
from trigflow.core.randomness import SampleRandom
from trigflow.data import Dataset, cache, load_collection, load_data
from trigflow.data.autoencoder import Autoencoder, load_autoencoder
from trigflow.data.codecs import LatentCodec
from trigflow.data.formats.latents import PUBLISHED, read_latents_card
from trigflow.data.prepare.encode import Encoding, encode
from trigflow.system.config import Component
from trigflow.system.errors import UserError

CPU = torch.device("cpu")
COUNT, SIZE = 10, 16


@pytest.fixture(scope="module")
def kl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small AutoencoderKL."""
    return write_kl(tmp_path_factory.mktemp("autoencoders") / "kl")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten pictures in two classes."""
    random = np.random.default_rng(0)
    for row in range(COUNT):
        folder = tmp_path / "photos" / "ab"[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return tmp_path / "photos"


def encoded(photos: Path, vae: Path, name: str = "latents", **options: object) -> Path:
    out = photos.parent / name
    how = Encoding(**options)  # type: ignore[arg-type]
    encode(
        load_collection(str(photos)), load_autoencoder(vae, CPU), (vae, str(vae)), out, how, progress=False
    )
    return out


def opened(folder: Path, **options: object) -> Dataset:
    return load_data(Component(str(folder), dict(options)))


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# What is written


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float16", 2**-11 + 1e-6)])
def test_latents_are_those_of_diffusers(photos: Path, kl: Path, dtype: str, error: float) -> None:
    """Mean and standard deviation of latent_dist, of images in [-1, 1], in the order of the files."""
    import diffusers

    out = encoded(photos, kl, dtype=dtype, batch=COUNT)
    vae = diffusers.AutoencoderKL.from_pretrained(kl, low_cpu_mem_usage=False).eval()
    images = [np.array(Image.open(path)) for path in sorted(photos.rglob("*.png"))]
    with torch.no_grad():
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
        known = vae.encode(pixels).latent_dist
    stored = torch.from_numpy(np.load(out / "latents.npy")).float()  # no tool of ours is needed to read it
    wanted = torch.cat([known.mean, known.std], 1)
    torch.testing.assert_close(stored, wanted, rtol=error, atol=1e-6)
    assert np.load(out / "labels.npy").tolist() == [0] * 5 + [1] * 5
    card = read_latents_card(out)
    assert (card.count, card.shape, card.num_classes, card.classes) == (COUNT, (4, 8, 8), 2, ("a", "b"))
    assert (out / "vae" / "config.json").read_bytes() == (kl / "config.json").read_bytes()


def test_certain_latents_and_means_alone_take_half_of_the_space(
    photos: Path, kl: Path, tmp_path: Path
) -> None:
    certain = encoded(photos, write_dc(tmp_path / "dc"), "certain")
    assert np.load(certain / "latents.npy").shape == (COUNT, 4, 4, 4)
    means = encoded(photos, kl, "means", mean_only=True)
    both = encoded(photos, kl, "both")
    assert np.array_equal(np.load(means / "latents.npy"), np.load(both / "latents.npy")[:, :4])
    for folder in (certain, means):
        assert opened(folder).spread is None
    ratio = [np.divide(read_latents_card(folder).std, read_latents_card(both).std) for folder in (means,)]
    assert (ratio[0] < 0.99).all()  # the spread is part of what a training sees


def test_grey_images_become_rgb_and_a_grey_autoencoder_takes_grey(tmp_path: Path, kl: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 1, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "grey.npy", images)
    grey = write_kl(tmp_path / "kl-1", image_channels=1)
    source = tmp_path / "grey.npy"
    assert opened(encoded(source, kl, "rgb")).sample_shape == (3, 8, 8)
    assert opened(encoded(source, grey, "grey")).sample_shape == (1, 8, 8)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    photos: Path, kl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(encoded(photos, kl, "whole", batch=4))
    collection, source, out = load_collection(str(photos)), (kl, str(kl)), photos.parent / "out"
    autoencoder, how = load_autoencoder(kl, CPU), Encoding(batch=4)
    moments, calls = Autoencoder.moments, iter([False, False, False, True])

    def stopping(self: Autoencoder, images: torch.Tensor) -> object:
        if next(calls):
            raise KeyboardInterrupt
        return moments(self, images)

    monkeypatch.setattr(Autoencoder, "moments", stopping)
    with pytest.raises(KeyboardInterrupt, match="add --resume to the same command"):
        encode(collection, autoencoder, source, out, how, progress=False)
    monkeypatch.undo()
    assert not out.exists()
    with pytest.raises(UserError, match="continue it with --resume"):
        encode(collection, autoencoder, source, out, how, progress=False)
    for other in (Encoding(batch=4, dtype="float32"), Encoding(batch=4, mean_only=True), Encoding(size=8)):
        with pytest.raises(UserError, match="made from other images or with other options"):
            encode(collection, autoencoder, source, out, other, resume=True, progress=False)
    part = out.with_name("out.part")
    assert len((part / "index.jsonl").read_text().splitlines()) == 1 + 8
    numbers = part / "latents.npy"
    numbers.write_bytes(numbers.read_bytes()[:-5])  # as after a loss of power: back to the batch before
    encode(collection, autoencoder, source, out, how, resume=True, progress=False)
    assert contents(out) == whole and not part.exists()


def test_a_kill_while_the_folder_was_finished_loses_nothing(
    photos: Path, kl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = contents(encoded(photos, kl, "whole", batch=4))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trigflow.data.prepare.encode.write_json", fail)
    with pytest.raises(UserError, match="No space left on device; progress is saved"):
        encoded(photos, kl, batch=4)
    monkeypatch.undo()
    out, autoencoder = photos.parent / "latents", load_autoencoder(kl, CPU)
    assert not out.exists()
    encode(
        load_collection(str(photos)), autoencoder, (kl, str(kl)), out, Encoding(batch=4), True, progress=False
    )
    assert contents(out) == whole


def test_damaged_images_stop_it_or_are_left_out(photos: Path, kl: Path) -> None:
    for name in ("a/0.png", "a/8.png"):
        (photos / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0\.png is damaged"):
        encoded(photos, kl)
    assert not (photos.parent / "latents").exists()
    out = encoded(photos, kl, skip_damaged=True, batch=3)
    dataset = opened(out)
    assert dataset.labels is not None and dataset.labels.tolist() == [0] * 3 + [1] * 5
    assert read_latents_card(out).damaged == ("a/0.png", "a/8.png")
    for path in photos.rglob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="all of its images are damaged"):
        encoded(photos, kl, "none", skip_damaged=True)


def test_transparent_pixels_get_the_background(
    photos: Path, kl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also of a run that was gone on with."""
    for number in (0, 8):
        Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0)).save(photos / "a" / f"{number}.png")
    (photos / "b" / "9.png").write_bytes(b"no picture")
    line = [
        "data",
        "encode",
        str(photos),
        "--vae",
        str(kl),
        "--out",
        str(photos.parent / "on-red"),
        "--batch",
        "3",
    ]
    assert cli.main([*line, "--background", "red"]) == 2
    capsys.readouterr()
    assert cli.main([*line, "--resume", "--skip-damaged"]) == 2  # on white
    assert "with other options" in capsys.readouterr().err
    assert cli.main([*line, "--resume", "--skip-damaged", "--background", "red"]) == 0
    assert "2 pictures have transparency: composited on red" in capsys.readouterr().err
    Image.new("RGB", (SIZE, SIZE), "red").save(photos / "a" / "0.png")
    plain = encoded(photos, kl, skip_damaged=True, batch=3)
    assert torch.equal(opened(plain).data[0], opened(photos.parent / "on-red").data[0])


def test_sizes_must_suit_the_autoencoder(photos: Path, kl: Path) -> None:
    Image.new("RGB", (SIZE, SIZE + 2)).save(photos / "b" / "x.png")
    with pytest.raises(UserError, match=r"x\.png has the shape \(3, 18, 16\), the first .*--size"):
        encoded(photos, kl)
    assert opened(encoded(photos, kl, "sized", size=8)).data_shape == (4, 4, 4)
    with pytest.raises(UserError, match="--size 9: the autoencoder wants a multiple of 2"):
        encoded(photos, kl, "odd", size=9)
    Image.new("RGB", (15, 15)).save(photos / "a" / "0.png")
    with pytest.raises(UserError, match=r"0\.png has 15x15 pixels: .* multiples of 2, give --size"):
        encoded(photos, kl, "odd")
    with pytest.raises(UserError, match="is for greyscale images"):
        encoded(photos, write_kl(photos.parent / "kl-1", image_channels=1), "grey", size=8)


def test_latents_beyond_float16_are_refused(photos: Path, kl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = Autoencoder.moments

    def large(self: Autoencoder, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = moments(self, images)
        assert std is not None
        return 1e6 * mean, std

    monkeypatch.setattr(Autoencoder, "moments", large)
    with pytest.raises(UserError, match="not finite in float16: give --dtype float32"):
        encoded(photos, kl)
    assert opened(encoded(photos, kl, "wide", dtype="float32")).data.abs().max() > 65504


# Statistics


def test_x_0_has_the_std_sigma_data_as_it_is_drawn(photos: Path, kl: Path) -> None:
    """Each channel, over many looks at every image: what a training sees."""
    dataset = opened(encoded(photos, kl))
    looks = 300
    rows = torch.arange(COUNT).repeat(looks)
    x_0 = dataset.encoded(rows, CPU, SampleRandom(0, torch.arange(len(rows)))).double()
    assert x_0.shape == (COUNT * looks, *dataset.data_shape)
    assert x_0.mean((0, 2, 3)).abs().max() < 0.005
    assert x_0.std((0, 2, 3)).sub(0.5).abs().max() < 0.005


def test_the_papers_constants_are_taken_for_its_autoencoder(photos: Path, tmp_path: Path, kl: Path) -> None:
    """Tables of appendix G: images in [-1, 1]; the same weights under another name are measured."""
    out = encoded(photos, write_kl(tmp_path / "sd-vae-ft-mse"))
    published = opened(out).codec
    assert isinstance(published, LatentCodec)
    assert published.mean == (1.56, -0.695, 0.483, 0.729)
    assert published.std == (5.27, 5.91, 4.21, 4.31)
    assert PUBLISHED["sd-vae-ft-mse"] == (published.mean, published.std)
    assert opened(out, statistics="published").codec == published
    card = read_latents_card(out)
    measured = opened(out, statistics="measured").codec
    assert isinstance(measured, LatentCodec) and (measured.mean, measured.std) == (card.mean, card.std)
    other = encoded(photos, kl, "other")
    assert opened(other).codec == opened(other, statistics="measured").codec
    with pytest.raises(UserError, match=r"data\.statistics = published: there are none for"):
        opened(other, statistics="published")


# Randomness


def test_a_look_follows_from_seed_and_image_number_alone(photos: Path, kl: Path) -> None:
    dataset = opened(encoded(photos, kl))
    rows, numbers = torch.tensor([3, 3, 7, 0]), torch.tensor([100, 101, 5, 6])
    together = dataset.encoded(rows, CPU, SampleRandom(1, numbers))
    for place in range(4):
        one = slice(place, place + 1)
        alone = dataset.encoded(rows[one], CPU, SampleRandom(1, numbers[one]))
        assert torch.equal(alone, together[one])
    assert not torch.allclose(together[0], together[1])  # another look at the same image
    assert not torch.allclose(together, dataset.encoded(rows, CPU, SampleRandom(2, numbers)))
    assert torch.equal(dataset.encoded(rows, CPU), dataset.codec.encode(dataset.data[rows]))
    means = opened(photos.parent / "latents", posterior=False)
    assert torch.equal(means.encoded(rows, CPU, SampleRandom(1, numbers)), dataset.encoded(rows, CPU))


def test_a_large_file_is_mapped_and_reads_the_same(
    photos: Path, kl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = encoded(photos, kl)
    rows, random = torch.tensor([9, 0, 4]), SampleRandom(0, torch.arange(3))
    read = opened(out).encoded(rows, CPU, random)
    monkeypatch.setattr(cache, "MAPPED_BYTES", 100)
    mapped = opened(out)
    assert mapped.mapped and torch.equal(mapped.encoded(rows, CPU, random), read)
    file = out / "latents.npy"
    for cut in (slice(-2), slice(200), slice(0)):
        content = file.read_bytes()
        file.write_bytes(content[cut])
        with pytest.raises(UserError, match=r"latents\.npy is damaged"):
            opened(out)
        file.write_bytes(content)


def test_labels_can_be_left_out(photos: Path, kl: Path) -> None:
    out = encoded(photos, kl)
    assert opened(out).num_classes == 2 and opened(out).classes == ("a", "b")
    assert opened(out).labelling.line == "labels: 2 classes from labels.npy"
    with pytest.raises(UserError, match="label_key"):
        opened(out, label_key="label")
    assert opened(out, labels=False).num_classes == 0


def test_flips_are_refused(photos: Path, kl: Path) -> None:
    """A flipped latent is not the latent of the flipped image."""
    with pytest.raises(UserError, match=r"data\.flip = true: latents holds no images but latents"):
        opened(encoded(photos, kl), flip=True)


# Folders that are not what they were


def edit(folder: Path, **changes: object) -> None:
    path = folder / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"count": 11},
            r"latents\.npy is damaged or another file: it holds float16 of shape \(10, 8, 8, 8\)",
        ),
        ({"dtype": "float32"}, r"latents\.npy is damaged"),
        ({"sha256": "0" * 64}, r"latents\.npy is damaged .*SHA-256"),
        ({"labels_sha256": "0" * 64}, r"labels\.npy is damaged"),
        ({"std": [1, 1, 1, 0]}, r"latents\.json\.std\.3 = 0"),
        ({"mean": [1, 1, 1]}, "other numbers of means"),
        ({"num_classes": 1}, r"labels must lie in 0\.\.0"),
        ({"num_classes": 3}, "3 classes, but 2 names of them"),
        ({"more": 1}, r"latents\.json\.more: there is no such key"),
        ({"format": 2}, r"latents\.json\.format = 2"),
    ],
)
def test_a_card_that_does_not_fit(changes: dict[str, object], words: str, photos: Path, kl: Path) -> None:
    out = encoded(photos, kl)
    edit(out, **changes)
    with pytest.raises(UserError, match=words):
        opened(out)


def test_a_file_that_is_gone(photos: Path, kl: Path) -> None:
    out = encoded(photos, kl)
    for name in ("labels.npy", "latents.npy"):
        (out / name).unlink()
        with pytest.raises(UserError, match=name):
            opened(out)


# The command


@pytest.fixture
def at_photos(photos: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(photos.parent)
    yield photos.parent


def test_encode_and_inspect(at_photos: Path, kl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "encode", "photos", "--vae", str(kl), "--out", "new/latents"]) == 0
    shown = capsys.readouterr().out
    assert "4 x 8 x 8" in shown and "float16, mean and standard deviation: 0.0 MiB" in shown
    assert "train on it: data=new/latents" in shown
    assert cli.main(["data", "inspect", "new/latents", "--out", "grid.png"]) == 0
    assert "standardised by             measured" in capsys.readouterr().out
    with Image.open("grid.png") as grid:
        assert grid.mode == "RGB"
    shutil.rmtree("new/latents/vae")
    assert cli.main(["data", "inspect", "new/latents"]) == 0
    assert cli.main(["data", "inspect", "new/latents", "--out", "again.png"]) == 2
    assert "--vae NAME_OR_PATH" in capsys.readouterr().err
    assert cli.main(["data", "inspect", "new/latents", "--out", "again.png", "--vae", str(kl)]) == 0
    assert Path("again.png").read_bytes() == Path("grid.png").read_bytes()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("encode photos --vae {kl}", "--out is missing"),
        ("encode photos --vae {kl} --out photos", "photos already exists"),
        ("encode photos --vae {kl} --out a --rgb", "--rgb is for data prepare"),
        ("encode photos --vae nowhere --out a", "there is no autoencoder 'nowhere'"),
        ("encode photos --vae photos --out a", "photos holds no autoencoder"),
        ("encode nowhere.zip --vae {kl} --out a", "there is no file nowhere.zip"),
        ("encode mixture2d --vae {kl} --out a", "give images"),
        ("prepare photos --vae {kl} --out a.zip", "--vae is for data encode and data inspect"),
        ("prepare photos --mean-only --out a.zip", "--mean-only is for data encode"),
        ("inspect photos --batch 3", "--batch is for data encode"),
    ],
)
def test_mistakes(
    line: str, words: str, at_photos: Path, kl: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", *line.format(kl=kl).split()]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert [entry.name for entry in at_photos.iterdir()] == ["photos"]


def test_latents_are_no_images(photos: Path, kl: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = encoded(photos, kl)
    for command in (
        ["data", "prepare", str(out), "--out", "a.zip"],
        ["train-classifier", str(out), "--out", "c"],
    ):
        assert cli.main(command) == 2
        assert "images" in capsys.readouterr().err
