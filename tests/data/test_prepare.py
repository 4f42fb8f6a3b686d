"""`trigflow data`: an archive that does not depend on how often its making was stopped, and true statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trigflow.commands import cli
from trigflow.data import Collection, load_collection, load_data
from trigflow.data.prepare import images as prepare
from trigflow.data.prepare.images import Preparation, resized
from trigflow.data.prepare.inspect import inspect
from trigflow.data.prepare.statistics import Statistics
from trigflow.system.errors import UserError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures of several sizes in two classes; two are alike."""
    random = np.random.default_rng(0)
    for row in range(6):
        folder = tmp_path / "photos" / "ab"[row % 2]
        folder.mkdir(parents=True, exist_ok=True)
        shape = (9 + 5 * (row % 5), 30 - 3 * (row % 5), 3)
        pixels = random.integers(0, 256, shape, dtype=np.uint8) if row % 5 else np.full(shape, 7, np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return tmp_path / "photos"


def test_prepare_and_inspect(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, grid = photos.parent / "p.zip", photos.parent / "grid.png"
    assert cli.main(["data", "prepare", str(photos), "--out", str(out), "--size", "8"]) == 0
    shown = capsys.readouterr().out
    assert "3 x 8 x 8 (6)" in shown and "2 (a: 3, b: 3)" in shown
    assert [line.split()[-1] for line in shown.splitlines() if "duplicates" in line] == ["1"]
    dataset = load_data(str(out))
    assert dataset.data.shape == (6, 3, 8, 8) and dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert sorted(path.name for path in photos.parent.iterdir()) == ["p.zip", "photos"]
    for source in (photos, out):
        assert cli.main(["data", "inspect", str(source), "--out", str(grid)]) == 0
        assert "images                      6" in capsys.readouterr().out and grid.stat().st_size


def test_a_stopped_run_goes_on_to_the_same_bytes(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collection, how = load_collection(str(photos)), Preparation(size=8)
    whole, out = photos.parent / "whole.zip", photos.parent / "out.zip"
    prepare.prepare(collection, whole, how, progress=False)

    def stopping(image: np.ndarray, size: int) -> np.ndarray:
        if stops.pop():
            raise KeyboardInterrupt
        return resized(image, size)

    stops = [True, False, False]
    monkeypatch.setattr(prepare, "resized", stopping)
    with pytest.raises(KeyboardInterrupt, match="add --resume to the same command"):
        prepare.prepare(collection, out, how, progress=False)
    monkeypatch.undo()
    with pytest.raises(UserError, match="continue it with --resume"):
        prepare.prepare(collection, out, how, progress=False)
    with pytest.raises(UserError, match="made from other images or with other options"):
        prepare.prepare(collection, out, Preparation(size=9), resume=True, progress=False)
    images = photos.parent / "out.zip.part" / "images"
    images.write_bytes(images.read_bytes()[:-5])  # as after a loss of power
    prepare.prepare(collection, out, how, resume=True, progress=False)
    assert out.read_bytes() == whole.read_bytes()


def test_sizes_and_places_that_cannot_be(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["data", "prepare", str(photos), "--size", "8", "--out"]
    assert cli.main([*line[:3], "--size", "9000", "--out", str(photos.parent / "p.zip")]) == 2
    assert "--size 9000: an image has at most 67108864 pixels, so give 8192" in capsys.readouterr().err
    assert cli.main([*line, str(photos.parent / "new" / "sub" / "p.zip")]) == 0
    assert cli.main([*line, str(photos / "b" / "1.png" / "p.zip")]) == 2
    assert "cannot make the folder" in capsys.readouterr().err


def test_names_that_are_not_utf_8_are_told(photos: Path) -> None:
    os.rename(photos / "a", os.fsencode(photos) + b"/cl\xff")
    done = subprocess.run(
        [sys.executable, "-m", "trigflow", "data", "inspect", str(photos)], capture_output=True, check=False
    )
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr


def stopping_at_the_end(*_: object) -> None:
    raise KeyboardInterrupt


def test_other_images_of_the_same_name_and_number_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays are read at once: their part knows what is in them."""

    def collection(level: int) -> Collection:
        images = np.full((4, 1, 8, 8), level, np.uint8)
        images[0, 0, 0] = 0
        np.savez(tmp_path / "images.npz", images=images)
        return load_collection(str(tmp_path / "images.npz"))

    monkeypatch.setattr(prepare, "_finish", stopping_at_the_end)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(collection(10), tmp_path / "out.zip", Preparation(), progress=False)
    for resume in (True, False):
        with pytest.raises(UserError, match="made from other images or with other options"):
            prepare.prepare(collection(200), tmp_path / "out.zip", Preparation(), resume, progress=False)


def test_what_a_mistake_leaves_does_not_block(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part without any image, or whose images and options end it again, is gone; others say how to go on."""
    out = photos.parent / "p.zip"
    line = ["data", "prepare", str(photos), "--out", str(out), "--size", "8"]
    Image.new("L", (9, 9), 3).save(photos / "a" / "0.png")
    assert cli.main(line) == 2
    assert "use --rgb" in capsys.readouterr().err and not out.with_name("p.zip.part").exists()
    whole = (photos / "a" / "0.png").read_bytes()
    (photos / "a" / "0.png").write_bytes(b"no picture")
    assert cli.main([*line, "--rgb"]) == 2 and not out.with_name("p.zip.part").exists()
    (photos / "a" / "0.png").write_bytes(whole)
    out.with_name("p.zip.part").mkdir()
    assert cli.main([*line, "--rgb"]) == 0 and out.is_file() and not out.with_name("p.zip.part").exists()


def test_a_folder_of_the_users_is_no_part(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = photos.parent / "p.zip.part" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert cli.main(["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip")]) == 2
    assert "holds no interrupted run" in capsys.readouterr().err and mine.read_text() == "mine"


def test_damaged_images_stop_it_or_are_left_out(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a" / "2.png").write_bytes(b"no picture")
    line = ["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip"), "--size", "8"]
    assert cli.main(line) == 2
    error = capsys.readouterr().err
    assert "2.png is damaged" in error and "--skip-damaged leaves it out, and --resume keeps" in error
    assert cli.main([*line, "--skip-damaged"]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
    assert cli.main([*line, "--skip-damaged", "--resume"]) == 0
    assert "(first: a/2.png)" in capsys.readouterr().out
    assert len(load_data(str(photos.parent / "p.zip")).data) == 5


def test_two_runs_do_not_write_one_archive(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip"), "--size", "8"]
    finish = prepare._finish

    def meanwhile(*arguments: Any) -> Statistics:
        for resume in ([], ["--resume"]):
            assert cli.main([*line, *resume]) == 2
            assert "is in use by another process" in capsys.readouterr().err
        return finish(*arguments)

    monkeypatch.setattr(prepare, "_finish", meanwhile)
    assert cli.main(line) == 0


def test_a_terminated_run_says_how_to_go_on(photos: Path) -> None:
    """And leaves no lock."""
    line = ["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip"), "--size", "8"]
    kill = "import os, sys; from trigflow.commands import cli; from trigflow.data.prepare import images\n"
    kill += "images._finish = lambda *_: os.kill(os.getpid(), 15)\nsys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", kill, *line], capture_output=True, text=True, check=False)
    assert done.returncode == 130 and "add --resume to the same command" in done.stderr.splitlines()[-1], (
        done.stderr
    )
    assert cli.main([*line, "--resume"]) == 0


@pytest.mark.parametrize("line", ["{}", "[1]", '{"name": "a", "length": -1}', '{"name": "a"}', "9" * 5000])
def test_a_damaged_index_of_a_part(
    line: str, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = photos.parent / "p.zip"
    monkeypatch.setattr(prepare, "_finish", stopping_at_the_end)
    command = ["data", "prepare", str(photos), "--out", str(out), "--size", "8"]
    assert cli.main(command) == 130
    with (out.with_name("p.zip.part") / "index.jsonl").open("a") as index:
        index.write(line + "\n")
    capsys.readouterr()
    assert cli.main([*command, "--resume"]) == 2
    assert "p.zip.part is damaged: remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("prepare digits", "--out is missing"),
        ("prepare digits --out a.tar", "ends in .zip"),
        ("inspect digits --size 3", "--size is for data prepare"),
        ("inspect digits --out a.jpg", "must end in .png"),
        ("inspect mixture2d", "give images"),
        ("inspect nowhere.tar", "nowhere.tar"),
        ("prepare digit --out a.zip", "did you mean 'digits'"),
        ("inspect digits split=test", "unknown key 'split'; there are: data"),
        ("inspect digits data.split=test", "'digits' has no such option"),
        (
            "prepare digits photos --out a.zip",
            "'photos' is not of the form key=value (for example data.split",
        ),
    ],
)
def test_mistakes(
    line: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", *line.split()]) == 2
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not list(tmp_path.iterdir())


def test_names_do_not_reach_the_terminal_raw(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename(photos / "a", photos / "\x1b[31ma\n\u202e")
    assert cli.main(["data", "inspect", str(photos)]) == 0
    assert r"2 (\x1b[31ma\n\u202e: 3, b: 3)" in capsys.readouterr().out
    (photos / "b" / "\x1b]0;x.png").write_bytes(b"no picture")
    assert (
        cli.main(["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip"), "--size", "8"]) == 2
    )
    error = capsys.readouterr().err
    assert r"\x1b]0;x.png is damaged" in error and "\x1b" not in error


def test_large_images_are_not_kept(photos: Path) -> None:
    Image.new("RGB", (900, 300)).save(photos / "a" / "large.png")
    for folder in (photos / "a", photos / "b"):
        for file in folder.iterdir():
            Image.open(file).resize((900, 300)).save(file)
    _, shown = inspect(load_collection(str(photos)), 64, False)
    assert shown.shape == (7, 3, 256, 256)


def test_data_options(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As a recipe has them, before and behind flags."""
    out, path = photos.parent / "p.zip", photos.parent / "two.npz"
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    np.savez(path, one=images, two=images[:3])
    assert cli.main(["data", "inspect", str(path)]) == 2
    assert "choose one by data.key=NAME" in capsys.readouterr().err
    assert cli.main(["data", "inspect", str(path), "data.key=two"]) == 0
    assert "images                      3" in capsys.readouterr().out
    assert cli.main(["data", "prepare", str(path), "--out", str(out), "data.key=one"]) == 0
    assert len(load_data(str(out)).data) == 5
    assert cli.main(["data", "inspect", str(photos), "data.labels=false"]) == 0
    assert "none: no labels" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["npz", "png"])
def test_images_of_one_pixel_value_can_be_looked_at(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.full((3, 1, 8, 8), 7, np.uint8)
    path = tmp_path / "flat.npz" if suffix == "npz" else tmp_path
    np.savez(path, images=images) if suffix == "npz" else Image.fromarray(images[0, 0]).save(path / "a.png")
    assert cli.main(["data", "inspect", str(path)]) == 0
    assert "lowest, highest pixel value 7, 7" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"{path.name}: the data does not vary"):
        load_data(str(path))


def test_images_of_several_sizes_need_a_size(photos: Path) -> None:
    with pytest.raises(UserError, match="--size"):
        prepare.prepare(load_collection(str(photos)), photos.parent / "p.zip", Preparation(), progress=False)
    with pytest.raises(UserError, match="trigflow data prepare"):
        load_data(str(photos))


def test_statistics_are_those_of_numpy() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 6), dtype=np.uint8)
    statistics = Statistics()
    for image in images:
        statistics.add(image, None)
    unit = images / 255
    assert statistics.moments() == [
        (pytest.approx(unit[:, c].mean()), pytest.approx(unit[:, c].std())) for c in range(3)
    ]
    assert (statistics.lowest, statistics.highest) == (images.min(), images.max())


def test_grey_among_colours_counts_in_each_channel() -> None:
    statistics = Statistics()
    statistics.add(np.full((3, 2, 2), 200, dtype=np.uint8), None)
    statistics.add(np.zeros((1, 2, 2), dtype=np.uint8), None)
    assert statistics.moments() == [pytest.approx((100 / 255, 100 / 255))] * 3


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 40, 17), (3, 5, 30), (1, 8, 8)])
def test_resizing_keeps_a_flat_image_flat(shape: tuple[int, ...]) -> None:
    assert (resized(np.full(shape, 93, np.uint8), 8) == 93).all()
    assert resized(np.zeros(shape, np.uint8), 8).shape == (shape[0], 8, 8)


def resized_whole(image: np.ndarray, size: int) -> np.ndarray:
    """All of the picture resized, and cropped then: ADM's own order."""
    picture = Image.fromarray(image.transpose(1, 2, 0))
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    wide, high = (max(size, round(side * scale)) for side in picture.size)
    picture = picture.resize((wide, high), Image.Resampling.BICUBIC)
    left, top = (wide - size) // 2, (high - size) // 2
    return np.array(picture.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [8, 32, 64, 256])
@pytest.mark.parametrize("shape", [(375, 500), (500, 375), (100, 100), (5, 7), (63, 1000), (300, 33)])
def test_only_the_middle_is_resized_and_is_the_same(shape: tuple[int, int], size: int) -> None:
    """To one grey level: Pillow rounds between its two passes, whose order depends on the shape."""
    image = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    error = np.abs(resized(image, size).astype(int) - resized_whole(image, size))
    assert error.max() <= 1
    assert (error > 0).mean() < (0.25 if size == 8 else 0.004)


@pytest.mark.parametrize("shape", [(1, 20_000), (20_000, 1), (3, 9_000)])
def test_memory_is_bounded_by_the_size_that_is_wanted(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    resize = Image.Image.resize

    def watched(self: Image.Image, *arguments: Any) -> Image.Image:
        made.append(self.width * self.height)
        found = resize(self, *arguments)
        made.append(found.width * found.height)
        return found

    monkeypatch.setattr(Image.Image, "resize", watched)
    assert (resized(np.full((3, *shape), 93, np.uint8), 256) == 93).all()
    assert made[-1] == 256**2 and max(made) == 256**2
