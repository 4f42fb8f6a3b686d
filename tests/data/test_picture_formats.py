"""Formats of encoded images: read as they are, refused in one line where they are damaged, cut, empty or foreign."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

from trigflow import recipes
from trigflow.data import Dataset, cache, load_collection, load_data
from trigflow.data.formats import picture
from trigflow.data.formats.background import Background
from trigflow.data.formats.picture import DamagedPicture, decoded
from trigflow.system.config import Component
from trigflow.system.errors import UserError
from trigflow.training.loop import train

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = [0, 1, 2, 0, 1, 2]


def png(image: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png", **options)
    return buffer.getvalue()


PNGS = [png(image) for image in IMAGES]


def refused(path: Path | str, words: str = ".", **options: Any) -> str:
    with pytest.raises(UserError, match=words) as caught:
        load_data(Component(str(path), options))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Pictures


def saved(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "png")
    return buffer.getvalue()


def test_palettes_become_rgb() -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    assert decoded(saved(palette), "a")[:, 0].tolist() == [[10, 200], [20, 100], [30, 50]]


def see_through() -> Image.Image:
    """Black of alpha 0, a colour of alpha 128, a colour of alpha 255: (1, 3) pixels RGBA."""
    pixels = [[(0, 0, 0, 0), (100, 50, 200, 128), (10, 20, 30, 255)]]
    return Image.fromarray(np.array(pixels, np.uint8))


ON_WHITE = [[255, 255, 255], [177, 152, 227], [10, 20, 30]]
ON_RED = [[255, 0, 0], [177, 25, 100], [10, 20, 30]]


@pytest.mark.parametrize("format", ["png", "webp", "tiff", "avif"])
@pytest.mark.parametrize(("name", "expected"), [("white", ON_WHITE), ("#ff0000", ON_RED)])
def test_alpha_is_composited(format: str, name: str, expected: list[list[int]]) -> None:
    buffer, background = io.BytesIO(), Background(name)
    options: dict[str, Any] = {"lossless": True, "exact": True} if format == "webp" else {}
    if format == "avif":
        options = {"quality": 100, "subsampling": "4:4:4"}
    see_through().save(buffer, format, **options)
    pixels = decoded(buffer.getvalue(), "a", background)[:, 0].T
    assert np.abs(pixels.astype(int) - expected).max() <= (4 if format == "avif" else 0)
    assert background.note == f"1 picture has transparency: composited on {name}"


def test_transparency_of_palettes_colours_and_greys() -> None:
    """As PNG (tRNS) and GIF keep it."""
    background, buffer = Background(), io.BytesIO()
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    colours = palette.convert("RGB")
    palette.save(buffer, "gif", transparency=0)
    assert decoded(buffer.getvalue(), "a", background)[:, 0].tolist() == [[255, 200], [255, 100], [255, 50]]
    palette.info["transparency"] = b"\x80\xff"
    assert decoded(saved(palette), "a", background)[:, 0].tolist() == [[132, 200], [137, 100], [142, 50]]
    for mode, key, expected in (
        ("RGB", (10, 20, 30), [255, 200]),
        ("L", 18, [255, 124]),
        ("1", 0, [255, 255]),
    ):
        picture = colours.convert(mode)
        buffer = io.BytesIO()
        picture.save(buffer, "png", transparency=key)
        found = decoded(buffer.getvalue(), "a", background)
        assert found[0, 0].tolist() == expected and len(found) == (3 if mode == "RGB" else 1), mode
    assert background.pictures == 5


def test_grey_stays_grey_on_grey() -> None:
    content = saved(Image.fromarray(np.array([[[40, 0], [40, 255]]], np.uint8)))
    assert decoded(content, "a").tolist() == [[[255, 40]]]
    assert decoded(content, "a", Background("black")).tolist() == [[[0, 40]]]
    assert decoded(content, "a", Background("red"))[:, 0].tolist() == [[255, 40], [0, 40], [0, 40]]


def test_an_opaque_alpha_channel_says_nothing() -> None:
    background = Background()
    content = saved(see_through().crop((2, 0, 3, 1)))
    assert decoded(content, "a", background).ravel().tolist() == [10, 20, 30]
    assert background.pictures == 0 and background.note == ""


@pytest.mark.parametrize("name", ["whit", "#12", "", "#ff000080", "5"])
def test_backgrounds_that_are_no_colours(name: str, tmp_path: Path) -> None:
    refused(write_folder(tmp_path, PNGS), "is no colour: give a name", background=name)


def test_deep_and_enormous_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DamagedPicture, match="a has more than 8 bits"):
        decoded(saved(Image.fromarray(np.zeros((2, 2), np.uint16))), "a")
    monkeypatch.setattr(picture, "MOST_PIXELS", 19)
    with pytest.raises(DamagedPicture, match="claims 4x5 pixels"):
        decoded(PNGS[0], "a")


def tiff(bits: int) -> bytes:
    """2x2 pixels in RGB, which Pillow reads in 8 bits whatever they have."""
    shorts = [(256, 2), (257, 2), (259, 1), (262, 2), (273, 128), (277, 3), (278, 2), (279, 3 * bits // 2)]
    entries = [struct.pack("<HHII", tag, 3, 1, value) for tag, value in shorts]
    entries.insert(2, struct.pack("<HHII", 258, 3, 3, 122))
    head = b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return head.ljust(122, b"\0") + struct.pack("<3H", bits, bits, bits) + bytes(3 * bits // 2)


@pytest.mark.parametrize(
    "content", [b"P6 1 1 65535\n" + bytes(6), b"P5 1 1 256\n" + bytes(2), b"P3 1 1 1023\n1 2 3\n"]
)
def test_deep_ppm_is_refused(content: bytes) -> None:
    with pytest.raises(DamagedPicture, match="a has more than 8 bits"):
        decoded(content, "a")
    assert decoded(b"P3 1 1 15\n15 0 3\n", "a").ravel().tolist() == [255, 0, 51]
    assert decoded(b"P4 2 1\n\x40", "a").tolist() == [[[255, 0]]]


def test_deep_avif_is_refused() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 90, 200)).save(buffer, "avif")
    content = bytearray(buffer.getvalue())
    assert decoded(bytes(content), "a").shape == (3, 8, 8)
    content[content.index(b"av1C") + 6] |= 0x40
    with Image.open(buffer) as opened:
        assert picture._bits(opened, bytes(content)) > 8


def test_deep_tiffs_are_refused() -> None:
    assert decoded(tiff(8), "a").shape == (3, 2, 2)
    with pytest.raises(DamagedPicture, match="a has more than 8 bits"):
        decoded(tiff(16), "a")


@pytest.mark.parametrize("format", ["png", "jpeg", "webp", "tiff", "avif"])
def test_pictures_are_upright(format: str) -> None:
    """Orientation 6 of EXIF: a viewer turns it clockwise."""
    image = Image.fromarray(np.repeat(np.arange(0, 240, 30, dtype=np.uint8)[:, None], 16, 1).repeat(2, 0))
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    image.crop((0, 0, 8, 16)).convert("RGB").save(buffer, format, exif=exif, quality=100)
    upright = decoded(buffer.getvalue(), "a")
    assert upright.shape == (3, 8, 16)
    assert (np.diff(upright[0].astype(int).mean(0)) < 5).all() and upright[0, 0, 0] > upright[0, 0, -1]


@pytest.mark.filterwarnings("error")
def test_damaged_exif_data_do_not_matter() -> None:
    buffer = io.BytesIO()
    Image.new("L", (4, 5), 7).save(buffer, "jpeg", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03")
    assert decoded(buffer.getvalue(), "a").shape == (1, 5, 4)


@pytest.mark.parametrize("suffix", picture.SUFFIXES)
def test_every_ending_is_seen_and_read(suffix: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(80, dtype=np.uint8).reshape(8, 10)).save(
        buffer, Image.registered_extensions()[suffix]
    )
    (tmp_path / f"a{suffix.upper()}").write_bytes(buffer.getvalue())
    assert load_data(str(tmp_path)).data.shape[2:] == (8, 10)


def test_a_picture_beyond_what_pillow_opens_is_called_large(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (15, 5):  # of Pillow, which warns, and above twice as much refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DamagedPicture, match="a claims more than 67108864 pixels: make it smaller"):
            decoded(PNGS[0], "a")


# Writers of each format


def write_folder(path: Path, contents: list[bytes]) -> Path:
    for row, content in enumerate(contents):
        inner = path / "images" / "cab"[LABELS[row]]
        inner.mkdir(parents=True, exist_ok=True)
        (inner / f"{row}.png").write_bytes(content)
    (path / "images").mkdir(exist_ok=True)
    return path / "images"


def write_tar(path: Path, contents: list[bytes]) -> Path:
    with tarfile.open(path / "images.tar", "w") as archive:
        for row, content in enumerate(contents):
            for name, body in ((f"x/{row}.jpg.png", content), (f"x/{row}.cls", str(LABELS[row]).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    return path / "images.tar"


def table(contents: list[bytes]) -> Any:
    pa = pytest.importorskip("pyarrow")
    images = pa.array([{"bytes": content, "path": None} for content in contents], IMAGE(pa))
    labels = pa.array(LABELS[: len(contents)], pa.int64())
    features = {"label": {"_type": "ClassLabel", "names": ["c", "a", "b"]}, "image": {"_type": "Image"}}
    info = json.dumps({"info": {"features": features}})
    return pa.table({"image": images, "label": labels}).replace_schema_metadata({"huggingface": info})


def IMAGE(pa: Any) -> Any:
    return pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write_parquet(path: Path, contents: list[bytes]) -> Path:
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(table(contents), path / "images.parquet")
    return path / "images.parquet"


def write_arrow(path: Path, contents: list[bytes]) -> Path:
    pa = pytest.importorskip("pyarrow")
    data = table(contents)
    with pa.OSFile(str(path / "images.arrow"), "wb") as file, pa.ipc.new_stream(file, data.schema) as stream:
        stream.write_table(data)
    return path / "images.arrow"


WRITERS: dict[str, Callable[[Path, list[bytes]], Path]] = {
    "folder": write_folder,
    "tar": write_tar,
    "parquet": write_parquet,
    "arrow": write_arrow,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_images_and_labels(kind: str, tmp_path: Path) -> None:
    dataset = load_data(str(WRITERS[kind](tmp_path, PNGS)))
    order = sorted(range(6), key=lambda row: ("cab"[LABELS[row]], row)) if kind == "folder" else range(6)
    assert torch.equal(dataset.data, torch.from_numpy(IMAGES[list(order)]))
    assert dataset.labels is not None and dataset.num_classes == 3 and dataset.name == "images"
    wanted = ["abc".index("cab"[LABELS[row]]) if kind == "folder" else LABELS[row] for row in order]
    assert dataset.labels.tolist() == wanted and not dataset.mapped


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("content", [b"", b"GIF89a", PNGS[1][:60], png(IMAGES[0][:, :3])])
def test_a_damaged_cut_empty_or_foreign_picture(kind: str, content: bytes, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, [PNGS[0], content, *PNGS[2:]])
    assert "images" in refused(path, "is damaged or no image|has the shape")


@pytest.mark.parametrize("kind", WRITERS)
def test_no_pictures(kind: str, tmp_path: Path) -> None:
    refused(WRITERS[kind](tmp_path, []), "images")


@pytest.mark.parametrize("kind", ["tar", "parquet", "arrow"])
def test_a_damaged_cut_empty_or_foreign_file(kind: str, tmp_path: Path) -> None:
    path = WRITERS[kind](tmp_path, PNGS)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2], b"x" * 5000):
        path.write_bytes(content)
        assert path.name in refused(path)


def test_shards_by_pattern_and_folder_and_what_does_not_fit(tmp_path: Path) -> None:
    for number in range(3):
        os.replace(write_tar(tmp_path, PNGS), tmp_path / f"s-{number:03d}.tar")
    for name, count in (("s-{000..001}.tar", 12), ("s-*.tar", 18), ("s-{000,002}.tar", 12), ("", 18)):
        assert len(load_data(str(tmp_path / name)).data) == count
    refused(tmp_path / "s-{002..003}.tar", r"there is no file .*s-003\.tar")
    refused(tmp_path / "s-{3..1}.tar", "must go up")
    with tarfile.open(tmp_path / "bad.tar", "w") as archive:
        member = tarfile.TarInfo("a.cls")
        member.size = 3
        archive.addfile(member, io.BytesIO(b"cat"))
    refused(tmp_path / "bad.tar", "a has 0 pictures")


def test_columns_splits_and_folders_of_tables(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    data = table(PNGS)
    (tmp_path / "data").mkdir()
    for name, part in (("train-00000-of-00001", data), ("test-00000-of-00001", data.slice(0, 2))):
        parquet.write_table(part, tmp_path / "data" / f"{name}.parquet")
    assert len(load_data(str(tmp_path)).data) == 6
    assert len(load_data(Component(str(tmp_path), {"split": "test"})).data) == 2
    assert load_data(Component(str(tmp_path), {"label_key": None})).labels is None
    refused(tmp_path, r"no split 'dev'; choose by data\.split=NAME: test, train", split="dev")
    refused(tmp_path, "did you mean 'image'", image_key="imag")
    refused(tmp_path, "did you mean 'label'", label_key="labels")
    named = data.set_column(data.column_names.index("label"), "label", [[i / 2 for i in range(len(data))]])
    parquet.write_table(named, tmp_path / "named.parquet")
    refused(
        tmp_path / "named.parquet", r"'label' holds double, and labels are integers.*data\.label_key=null"
    )
    assert load_data(Component(str(tmp_path / "named.parquet"), {"label_key": None})).labels is None
    twice = data.append_column("other", data["image"]).append_column("id", data["label"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    refused(tmp_path / "twice.parquet", r"several columns of images, choose one by data\.image_key=NAME")
    assert load_data(Component(str(tmp_path / "twice.parquet"), {"image_key": "other"})).num_classes == 3


def test_folders_that_are_no_classes(tmp_path: Path) -> None:
    refused(tmp_path, "a folder may hold IDX files")
    for name in ("train", "test"):
        write_folder(tmp_path / name, PNGS)
        os.rename(tmp_path / name / "images", tmp_path / "x")
        os.rmdir(tmp_path / name)
        os.rename(tmp_path / "x", tmp_path / name)
    refused(tmp_path, "holds splits, not classes")
    (tmp_path / "train" / "d").mkdir()
    refused(tmp_path / "train", "d holds no pictures")
    (tmp_path / "train" / "0.png").write_bytes(PNGS[0])
    refused(tmp_path / "train", "pictures and folders of pictures")
    for row, content in enumerate(PNGS):
        (tmp_path / "test" / "a" / f"flat{row}.png").write_bytes(content)
    assert load_data(str(tmp_path / "test" / "a")).labels is None


@pytest.mark.parametrize("end", ["stream", "file"])
def test_offsets_of_damaged_tables_are_not_believed(end: str, tmp_path: Path) -> None:
    """They would be read wherever they lead, which ends the process."""
    pa = pytest.importorskip("pyarrow")
    data = table(PNGS)
    new = pa.ipc.new_stream if end == "stream" else pa.ipc.new_file
    with pa.OSFile(str(tmp_path / "images.arrow"), "wb") as file, new(file, data.schema) as writer:
        writer.write_table(data)
    path = tmp_path / "images.arrow"
    whole = path.read_bytes()
    offsets = np.cumsum([0, *map(len, PNGS)]).astype("<i4").tobytes()
    assert whole.count(offsets) == 1
    for wrong in (2**31 - 1, -5):
        damaged = offsets[:-4] + np.array(wrong, "<i4").tobytes()
        path.write_bytes(whole.replace(offsets, damaged))
        assert "images.arrow" in refused(path, "damaged or foreign")


def test_names_in_tables_that_are_no_utf_8(tmp_path: Path) -> None:
    path = write_arrow(tmp_path, PNGS)
    path.write_bytes(path.read_bytes().replace(b"bytes", b"byt\xff\xff"))
    assert "images.arrow" in refused(path, "damaged or foreign")


@pytest.mark.parametrize("names", [5, None, "abc", {"a": 1}])
def test_foreign_names_of_classes_are_left_out(names: Any, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    info = json.dumps({"info": {"features": {"label": {"_type": "ClassLabel", "names": names}}}})
    parquet.write_table(table(PNGS).replace_schema_metadata({"huggingface": info}), tmp_path / "a.parquet")
    collection = load_collection(str(tmp_path / "a.parquet"))
    assert collection.labels.num_classes == 3 and collection.labels.classes == ()


# CIFAR-10


def write_cifar(path: Path, **changes: Any) -> Path:
    data = np.random.default_rng(0).integers(0, 256, (4, 3072), dtype=np.uint8)
    batch = {b"data": data, b"labels": [3, 1, 9, 0]} | {key.encode(): value for key, value in changes.items()}
    for name in (*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"):
        (path / name).write_bytes(pickle.dumps(batch, protocol=3))
    return path


def test_cifar10(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    train, test = load_data(str(tmp_path)), load_data(Component(str(tmp_path), {"split": "test"}))
    assert train.data.shape == (20, 3, 32, 32) and test.data.shape == (4, 3, 32, 32)
    assert test.labels is not None and test.labels.tolist() == [3, 1, 9, 0] and test.num_classes == 10
    (tmp_path / "data_batch_3").unlink()
    refused(tmp_path, "holds no data_batch_3")


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("evil",)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": [3, 1, 9]},
        {"labels": [3, 1, 9, 10]},
        {"labels": [3, 1, 9, True]},
        {"data": np.zeros((4, 7), np.uint8)},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
        {"data": Evil()},
        {"data": b"x"},
    ],
)
def test_foreign_batches(changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "data_batch_1" in refused(write_cifar(tmp_path, **changes))
    assert not (tmp_path / "evil").exists()


def test_damaged_batches(tmp_path: Path) -> None:
    whole = (write_cifar(tmp_path) / "data_batch_1").read_bytes()
    for content in (b"", b"hello", whole[:500], whole[:-1], pickle.dumps([1])):
        (tmp_path / "data_batch_1").write_bytes(content)
        assert "data_batch_1" in refused(tmp_path)


def test_numbers_in_a_batch_allocate_nothing(tmp_path: Path) -> None:
    """LONG_BINPUT: the unpickler of C makes a list of that length."""
    whole = (write_cifar(tmp_path) / "data_batch_1").read_bytes()
    (tmp_path / "data_batch_1").write_bytes(b"\x80\x03Nr\xff\xff\xff\x7f0" + whole[2:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(load_data(str(tmp_path)).data) == 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


# Large data


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything counts as large; returns the folder of the cache."""
    monkeypatch.setattr(cache, "MAPPED_BYTES", 100)
    monkeypatch.setenv("TRIGFLOW_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", WRITERS)
def test_large_data_is_decoded_once_and_mapped(kind: str, small: Path, tmp_path: Path) -> None:
    path = str(WRITERS[kind](tmp_path, PNGS))
    first = load_data(path)
    (kept,) = small.glob("*.npy")
    when = kept.stat().st_mtime_ns
    again = load_data(path)
    assert (
        first.mapped and again.mapped and torch.equal(first.data, again.data) and again.codec == first.codec
    )
    assert kept.stat().st_mtime_ns == when and len(list(small.iterdir())) == 2
    for content in (b"", b"\x93NUMPY", kept.read_bytes()[:-1]):
        kept.unlink()
        kept.write_bytes(content)
        assert torch.equal(load_data(path).data, first.data)
    next(small.glob("*.json")).write_text("[")
    assert load_data(path).codec == first.codec


def test_a_mapped_array_gives_the_rows_of_one_in_memory(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", IMAGES)
    mapped, read = load_data(str(tmp_path / "a.npy")), load_data(str(tmp_path / "a.npz"))
    assert mapped.mapped and not read.mapped
    chosen = torch.tensor([4, 0, 4])
    assert torch.equal(mapped.encoded(chosen, torch.device("cpu")), read.encoded(chosen, torch.device("cpu")))
    assert mapped.to(torch.device("cpu")).data.data_ptr() == mapped.data.data_ptr()


def test_a_cache_that_cannot_be_written(small: Path, tmp_path: Path) -> None:
    small.write_text("a file")
    refused(write_tar(tmp_path, PNGS), "set TRIGFLOW_CACHE")


def test_a_run_on_mapped_data_is_bit_for_bit_that_on_data_in_memory(small: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", IMAGES)
    np.savez(tmp_path / "a.npz", IMAGES)
    models = []
    for number, name in enumerate(("a.npy", "a.npz")):
        changes = [*TINY, f"data={tmp_path / name}", "train.label_dropout=0"]
        if number:  # the codec of mapped data is measured in the same way, as long as it is small
            assert load_data(str(tmp_path / "a.npy")).codec == load_data(str(tmp_path / name)).codec
        folder = train(
            recipes.get("digits-teacher", changes), tmp_path / str(number), device="cpu", progress=False
        )
        models.append((folder / "model.safetensors").read_bytes())
    assert models[0] == models[1]


class FakeHub:
    """What is used of huggingface_hub."""

    def __init__(self, folder: Path, files: dict[str, list[str]]) -> None:
        self.folder, self.files = folder, files

    def HfApi(self) -> FakeHub:
        return self

    def list_repo_files(self, name: str, repo_type: str, revision: str) -> list[str]:
        if name == "a/none":
            raise ConnectionError("no network\nat all")
        return self.files[revision]

    def hf_hub_download(self, name: str, file: str, repo_type: str, revision: str) -> str:
        return str(self.folder / Path(file).name)


def test_names_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path, PNGS)
    hub = FakeHub(tmp_path, {"main": ["x.csv"], "refs/convert/parquet": ["default/train/images.parquet"]})
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert len(load_data("hf:a/b").data) == 6
    assert "downloading 1 files of hf:a/b (train)" in capsys.readouterr().err
    refused("hf:a/b", "no split 'test'", split="test")
    refused("hf:ab", "give hf:owner/name")
    refused("hf:a/none", "cannot get hf:a/none: ConnectionError: no network")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    refused("hf:a/b", r"pip install 'trigflow\[hub\]'")


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path, PNGS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(path, r"needs the library pyarrow: pip install 'trigflow\[hub\]'")


def test_collections_of_decoded_data() -> None:
    collection = load_collection("digits")
    name, read = next(collection.entries())
    assert (name, read().shape, collection.count) == ("image 0", (1, 8, 8), 1797)
    with pytest.raises(UserError, match="give images"):
        next(load_collection("mixture2d").entries())


def test_datasets_are_the_same_type(tmp_path: Path) -> None:
    assert isinstance(load_data(str(write_folder(tmp_path, PNGS))), Dataset)
