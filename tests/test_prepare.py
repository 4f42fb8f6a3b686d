"""`trigflow data`: an archive that does not depend on how often its making was stopped, and true statistics."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trigflow import cli
from trigflow.data import load_collection, load_data, prepare
from trigflow.data.prepare import Preparation, resized
from trigflow.data.statistics import Statistics
from trigflow.errors import UserError


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
    with pytest.raises(KeyboardInterrupt, match="--resume goes on"):
        prepare.prepare(collection, out, how, progress=False)
    monkeypatch.undo()
    with pytest.raises(UserError, match="--resume goes on"):
        prepare.prepare(collection, out, how, progress=False)
    with pytest.raises(UserError, match="other images or options"):
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


def test_other_images_of_the_same_name_and_number_are_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays are read at once: their part knows what is in them."""
    for folder, level in (("a", 10), ("b", 200)):
        (tmp_path / folder).mkdir()
        images = np.full((4, 1, 8, 8), level, np.uint8)
        images[0, 0, 0] = 0
        np.savez(tmp_path / folder / "images.npz", images=images)
    one, other = (load_collection(str(tmp_path / folder / "images.npz")) for folder in "ab")
    assert one.source == other.source and one.count == other.count
    monkeypatch.setattr(prepare, "_finish", lambda *_: pytest.fail("finished"))
    monkeypatch.setattr(prepare.Part, "add", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(one, tmp_path / "out.zip", Preparation(), progress=False)
    with pytest.raises(UserError, match="other images or options"):
        prepare.prepare(other, tmp_path / "out.zip", Preparation(), resume=True, progress=False)


def test_damaged_images_stop_it_or_are_left_out(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "a" / "2.png").write_bytes(b"no picture")
    line = ["data", "prepare", str(photos), "--out", str(photos.parent / "p.zip"), "--size", "8"]
    assert cli.main(line) == 2
    assert "2.png is damaged" in capsys.readouterr().err
    assert cli.main([*line, "--skip-damaged"]) == 2  # other options than those of the part
    assert cli.main([*line[:-3], str(photos.parent / "q.zip"), "--size", "8", "--skip-damaged"]) == 0
    assert "(first: a/2.png)" in capsys.readouterr().out
    assert len(load_data(str(photos.parent / "q.zip")).data) == 5


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


@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 40, 17), (3, 5, 30), (1, 8, 8)])
def test_resizing_keeps_a_flat_image_flat(shape: tuple[int, ...]) -> None:
    assert (resized(np.full(shape, 93, np.uint8), 8) == 93).all()
    assert resized(np.zeros(shape, np.uint8), 8).shape == (shape[0], 8, 8)
