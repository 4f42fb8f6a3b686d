"""Which files are taken for pictures: recognised by content, followed through links, and never left out in silence."""

from __future__ import annotations

import io
import os
import stat
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TINY
from PIL import Image
from test_picture_formats import write_cifar

from trigflow import recipes
from trigflow.commands import cli
from trigflow.data import cache, load_collection, load_data
from trigflow.data.formats import candidates
from trigflow.data.formats.candidates import LeftOut, why_not
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.training.loop import train

FORMATS = ("png", "jpeg", "bmp", "webp", "gif", "tiff", "ppm", "avif")


def encoded(format: str, level: int = 0, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    pixels = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3) + np.uint8(level)
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """Two classes of one picture."""
    for number, name in enumerate(("a", "b")):
        write(tmp_path / "k" / name / "0.png", encoded("png", number))
    return tmp_path / "k"


def note_of(path: Path) -> str:
    return load_collection(str(path)).left_out


# Recognised by content


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["0", "0.image", "0.PNG", "0.jpg"])
def test_a_picture_may_have_any_name(format: str, name: str, tmp_path: Path) -> None:
    write(tmp_path / "k" / name, encoded(format))
    assert load_data(str(tmp_path / "k")).data.shape == (1, 3, 8, 8)
    with zipfile.ZipFile(tmp_path / "k.zip", "w") as archive:
        archive.write(tmp_path / "k" / name, name)
    assert load_data(str(tmp_path / "k.zip")).data.shape == (1, 3, 8, 8)
    with tarfile.open(tmp_path / "k.tar", "w") as shard:
        shard.add(tmp_path / "k" / name, name if "." in name else f"{name}.x")
    assert load_data(str(tmp_path / "k.tar")).data.shape == (1, 3, 8, 8)


def test_pictures_of_many_endings_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, format in (("0.png", "png"), ("b.jfif", "jpeg"), ("c.avif", "avif"), ("d.ppm", "ppm")):
        write(tmp_path / "k" / name, encoded(format))
    assert cli.main(["data", "prepare", str(tmp_path / "k"), "--out", str(tmp_path / "k.zip")]) == 0
    shown = capsys.readouterr()
    assert "images                      4" in shown.out and "left out" not in shown.err
    assert len(load_data(str(tmp_path / "k.zip")).data) == 4


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n"


def test_eps_is_never_opened(tmp_path: Path) -> None:
    """Pillow would start Ghostscript."""
    for name in ("0.eps", "1"):
        write(tmp_path / "k" / name, EPS)
    with pytest.raises(UserError, match="holds no data that is known"):
        load_collection(str(tmp_path / "k"))
    write(tmp_path / "k" / "2.png", EPS)
    with pytest.raises(UserError, match=r"2\.png is damaged or no image"):
        load_data(str(tmp_path / "k"))


@pytest.mark.parametrize(
    "content",
    [b"", b"BM, a text", b"P5 is no picture", b"P1 1st place", b"RIFF1234WAVEfmt ", b"II*", b"\x89PNG"],
)
def test_what_only_begins_as_a_picture(content: bytes) -> None:
    assert why_not("a", lambda: content) == candidates.NO_PICTURE


def test_files_of_known_endings_are_not_opened() -> None:
    def opened() -> bytes:
        raise AssertionError

    assert why_not("a.png", opened) == "" and why_not("a.jfif", opened) == ""
    assert why_not("a.txt", opened) == why_not("a.NEF", opened) == candidates.NO_PICTURE
    assert why_not(".a.png", opened) == why_not("__MACOSX/a", opened) == candidates.HIDDEN


# Left out


def test_each_reason_is_told_with_three_names(animals: Path) -> None:
    for name in ("0.txt", "1.txt", "2.svg", "3.svg"):
        write(animals / "a" / name)
    write(animals / "b" / ".DS_Store")
    write(animals / "b" / "Thumbs.db")
    write(animals / "dataset.json", b'{"labels": null}')
    os.symlink("nowhere", animals / "b" / "gone.png")
    os.mkfifo(animals / "b" / "pipe.png")
    assert note_of(animals) == (
        "left out: 5 without a picture (a/0.txt, a/1.txt, a/2.svg, ...); 1 hidden (b/.DS_Store); "
        "1 behind a broken link (b/gone.png); 1 not a regular file (b/pipe.png)"
    )
    assert load_data(str(animals)).data.shape == (2, 3, 8, 8)


def test_names_are_printable() -> None:
    left_out = LeftOut("k")
    left_out.add(candidates.NO_PICTURE, "k/\x1b[31m")
    assert left_out.note == r"left out: 1 without a picture (\x1b[31m)"


def test_what_archives_and_shards_leave_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "k.zip", "w") as archive:
        for name in ("a/0.png", "a/1", "a/notes.txt", "__MACOSX/a/._0.png", "dataset.json"):
            content = b'{"labels": null}' if name == "dataset.json" else encoded("png")
            archive.writestr(name, content)
        info = zipfile.ZipInfo("a/2.png")
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "0.png")
    collection = load_collection(str(tmp_path / "k.zip"))
    assert collection.count == 2
    assert collection.left_out == (
        "left out: 1 hidden (__MACOSX/a/._0.png); 1 not a regular file (a/2.png); "
        "1 without a picture (a/notes.txt)"
    )
    with tarfile.open(tmp_path / "k.tar", "w") as shard:
        for name in ("0.png", "0.txt", "0.mask", "._0.png"):
            member = tarfile.TarInfo(name)
            member.size = len(encoded("png"))
            shard.addfile(member, io.BytesIO(encoded("png")))
        link = tarfile.TarInfo("1.png")
        link.type, link.linkname = tarfile.LNKTYPE, "0.png"
        shard.addfile(link)
    collection = load_collection(str(tmp_path / "k.tar"))
    assert collection.count == 1
    assert collection.left_out == (
        "left out: 2 without a picture (0.txt, 0.mask); 1 not a regular file (1.png); 1 hidden (._0.png)"
    )


def test_every_command_tells_it(animals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "left out: 1 without a picture (a/notes.txt)\n"
    write(animals / "a" / "notes.txt")
    assert cli.main(["data", "inspect", str(animals)]) == 0
    assert line in capsys.readouterr().err
    assert cli.main(["data", "prepare", str(animals), "--out", str(tmp_path / "k.zip")]) == 0
    assert line in capsys.readouterr().err
    recipe = recipes.get("digits-teacher", [*TINY, f"data={animals}"])
    train(recipe, tmp_path / "run", device="cpu", progress=True)
    assert line in capsys.readouterr().err


def test_files_of_fixed_names_may_be_links_and_have_company(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "elsewhere").mkdir()
    write_cifar(tmp_path / "elsewhere")
    for file in (tmp_path / "elsewhere").iterdir():
        os.symlink(file, tmp_path / "c" / file.name)
    write(tmp_path / "c" / "notes.txt")
    dataset = load_data(str(tmp_path / "c"))
    assert len(dataset.data) == 20 and dataset.notes == ()


# Links


def test_links_within_classes_are_followed(animals: Path, tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "deep" / "1.png", encoded("png", 7))
    write(tmp_path / "single.png", encoded("png", 8))
    os.symlink(tmp_path / "elsewhere", animals / "a" / "more")
    os.symlink(tmp_path / "single.png", animals / "b" / "single.png")
    os.symlink(tmp_path / "elsewhere", animals / "c")
    collection = load_collection(str(animals))
    assert collection.labels.values is not None and collection.labels.values.tolist() == [0, 0, 1, 1, 2]
    assert [name for name, _ in collection.entries()][:2] == ["a/0.png", "a/more/deep/1.png"]
    assert collection.left_out == ""


def test_linked_classes_are_in_natural_order(tmp_path: Path) -> None:
    for name in ("0", "2"):
        write(tmp_path / "k" / name / "0.png", encoded("png"))
    write(tmp_path / "elsewhere" / "deep" / "0.png", encoded("png"))
    os.symlink(tmp_path / "elsewhere", tmp_path / "k" / "10")
    labels = load_collection(str(tmp_path / "k")).labels
    assert labels.classes == ("0", "2", "10")
    assert labels.values is not None and labels.values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_table_of_labels_is_read_and_told_after_what_is_left_out(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = {
        "0/a.png": encoded("png"),
        "0/b": encoded("png", 1, "RGBA"),
        "0/notes.txt": b"",
        ".hidden/dataset.json": b"",
        "dataset.json": b'{"labels": [["0/a.png", 0], ["0/b", 3]]}',
    }
    path = tmp_path / "k.zip" if kind == "zip" else tmp_path / "k"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        for name, content in members.items():
            write(path / name, content)
    assert cli.main(["data", "inspect", str(path)]) == 0
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    left_out = [number for number, line in enumerate(lines) if line.startswith("left out: ")]
    labels = [number for number, line in enumerate(lines) if line.startswith("labels: ")]
    assert len(left_out) == len(labels) == 1 and left_out < labels
    assert "1 without a picture (0/notes.txt)" in lines[left_out[0]]
    assert lines[labels[0]].startswith("labels: 4 classes from dataset.json; 2 without samples (1, 2)")


def test_circles_of_links_are_found(animals: Path) -> None:
    os.symlink(animals / "a", animals / "a" / "self")
    os.symlink(animals, animals / "b" / "up")
    os.symlink("loop", animals / "b" / "loop")
    collection = load_collection(str(animals))
    assert collection.count == 2
    assert collection.left_out == (
        "left out: 2 behind a link to a folder that is read already (a/self, b/up); 1 behind a broken link (b/loop)"
    )


def test_a_class_that_is_a_circle_is_refused_with_the_reason(animals: Path) -> None:
    os.symlink(animals, animals / "self")
    with pytest.raises(UserError, match=r"self holds no pictures \(left out: 1 behind a link .* \(self\)\)"):
        load_collection(str(animals))


def test_unreadable_files_are_told(animals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: str) -> bytes:
        raise PermissionError

    write(animals / "a" / "LICENSE")
    monkeypatch.setattr(candidates, "_head", refused)
    assert note_of(animals) == "left out: 1 unreadable (a/LICENSE)"


def test_pictures_deep_below_beside_pictures(animals: Path) -> None:
    """Neither is left out in silence."""
    write(animals / "0.png", encoded("png"))
    with pytest.raises(UserError, match=r"pictures and folders of pictures \(0\.png, a/0\.png\)"):
        load_collection(str(animals))


def test_a_path_that_exists_is_no_pattern(tmp_path: Path) -> None:
    def shard(name: str, count: int) -> None:
        write(tmp_path / name)
        with tarfile.open(tmp_path / name, "w") as archive:
            for number in range(count):
                member = tarfile.TarInfo(f"{number}.png")
                member.size = len(encoded("png"))
                archive.addfile(member, io.BytesIO(encoded("png")))

    for name, count in (("x{0..1}.tar", 1), ("x[1].tar", 2), ("x1.tar", 3), ("d{a,b}/y[2]-00.tar", 4)):
        shard(name, count)
        assert load_collection(str(tmp_path / name)).count == count
    assert load_collection(str(tmp_path / "x*.tar")).count == 6
    assert load_collection(str(tmp_path / "d{a,b}" / "y[2]-{00..00}.tar")).count == 4
    write(tmp_path / "k[1]" / "a[1].png", encoded("png"))
    assert load_collection(str(tmp_path / "k[1]")).count == 1


# Transparency


@pytest.fixture
def icons(tmp_path: Path) -> Path:
    """Three pictures with black under their transparent pixels, one without; in two classes."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6] = (200, 100, 50, 255)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    for name in ("a/0", "a/1", "b/2"):
        write(tmp_path / "icons" / f"{name}.png", buffer.getvalue())
    write(tmp_path / "icons" / "b" / "3.png", encoded("png"))
    return tmp_path / "icons"


NOTE = "3 pictures have transparency: composited on "


@pytest.mark.parametrize(("flags", "corner"), [([], 255), (["--background", "black"], 0)])
def test_prepared_icons_have_a_background(
    flags: list[str], corner: int, icons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["data", "prepare", str(icons), "--out", str(tmp_path / "i.zip"), "--size", "4", *flags]
    assert cli.main(line) == 0
    assert NOTE + (flags or ["", "white"])[1] in capsys.readouterr().err
    dataset = load_data(str(tmp_path / "i.zip"))
    assert (dataset.data[:3, :, 0, 0].float() - corner).abs().max() < 20  # the filter rings
    assert dataset.notes == ()


def test_options_and_caches_know_the_background(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    for size in (2**28, 100):
        monkeypatch.setattr(cache, "MAPPED_BYTES", size)
        for name, corner in (("white", [255] * 3), ("#0000ff", [0, 0, 255]), ("white", [255] * 3)):
            dataset = load_data(Component(str(icons), {"background": name}))
            assert dataset.data[0, :, 0, 0].tolist() == corner and dataset.mapped == (size == 100)
            assert dataset.notes == (NOTE + name,)
    for counted in (tmp_path / "cache").glob("*.json"):
        counted.unlink()
    assert load_data(str(icons)).notes == (NOTE + "white",)
    assert (
        load_collection(str(icons)).identity
        != load_collection(Component(str(icons), {"background": "black"})).identity
    )
    assert cli.main(["data", "inspect", str(icons), "data.background=black"]) == 0
    assert NOTE + "black" in capsys.readouterr().err


def test_a_stopped_run_counts_all_of_them(
    icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (icons / "b" / "3.png").write_bytes(b"no picture")
    line = ["data", "prepare", str(icons), "--out", str(tmp_path / "i.zip"), "--size", "4"]
    assert cli.main(line) == 2
    capsys.readouterr()
    assert cli.main([*line, "--resume", "--skip-damaged"]) == 0
    shown = capsys.readouterr()
    assert NOTE + "white" in shown.err and "damaged                     1 (first: b/3.png)" in shown.out
    assert (
        cli.main(["data", "prepare", "digits", "--background", "red", "--out", str(tmp_path / "d.zip")]) == 2
    )
    assert "background" in capsys.readouterr().err


def test_transparent_pictures_of_archives_shards_and_tables(icons: Path, tmp_path: Path) -> None:
    files = sorted(icons.rglob("*.png"))
    with zipfile.ZipFile(tmp_path / "i.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    with tarfile.open(tmp_path / "i.tar", "w") as shard:
        for file in files:
            shard.add(file, file.name)
    parquet: Any = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table({"image": [file.read_bytes() for file in files]})
    parquet.write_table(table, tmp_path / "i.parquet")
    for kind in ("zip", "tar", "parquet"):
        dataset = load_data(Component(str(tmp_path / f"i.{kind}"), {"background": "#0a0b0c"}))
        assert dataset.data[0, :, 0, 0].tolist() == [10, 11, 12] and dataset.notes == (NOTE + "#0a0b0c",)
