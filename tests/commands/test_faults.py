"""Every format of data with every fault: one clear line and exit code 2, whatever reads it.

A format is tested by a line in WRITERS; a data set without one fails the first test.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from small_autoencoders import write_kl
from test_archive import archive, npy
from test_idx import idx
from test_picture_formats import PNGS, table, write_arrow, write_cifar, write_folder, write_parquet, write_tar

from trigflow.commands import cli
from trigflow.data import DATASETS, load_collection, load_data
from trigflow.data.autoencoder import load_autoencoder
from trigflow.data.prepare.encode import Encoding, encode

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
MADE_HERE = {"digits", "mixture2d"}  # they read no files of the user's

# Writes a small data set into a folder, and returns what names it and the files that the fault is done to.
Writer = Callable[[Path], tuple[Path, list[Path]]]


def one_file(path: Path) -> tuple[Path, list[Path]]:
    return path, [path]


def numpy_array(folder: Path) -> tuple[Path, list[Path]]:
    np.save(folder / "images.npy", IMAGES)
    return one_file(folder / "images.npy")


def numpy_archive(folder: Path) -> tuple[Path, list[Path]]:
    np.savez_compressed(folder / "images.npz", images=IMAGES, labels=np.arange(6) % 3)
    return one_file(folder / "images.npz")


def edm(suffix: str, contents: list[bytes]) -> Writer:
    members = {f"{row}.{suffix}": content for row, content in enumerate(contents)}
    return lambda folder: one_file(archive(folder, members))


def mnist(packed: bool) -> Writer:
    def write(folder: Path) -> tuple[Path, list[Path]]:
        suffix, pack = (".gz", gzip.compress) if packed else ("", bytes)
        files = [folder / f"train-{name}-ubyte{suffix}" for name in ("images-idx3", "labels-idx1")]
        for file, array in zip(files, (IMAGES[:, 0], np.arange(6, dtype=np.uint8)), strict=True):
            file.write_bytes(pack(idx(array)))
        return folder, files[:1]

    return write


def cifar(folder: Path) -> tuple[Path, list[Path]]:
    return write_cifar(folder), [folder / "data_batch_2"]


def pictures(folder: Path) -> tuple[Path, list[Path]]:
    path = write_folder(folder, PNGS)
    return path, sorted(path.rglob("*.png"))


def shards(folder: Path) -> tuple[Path, list[Path]]:
    for number in range(2):
        write_tar(folder, PNGS).rename(folder / f"s-{number:03d}.tar")
    return folder / "s-{000..001}.tar", [folder / "s-001.tar"]


def saved_to_disk(folder: Path) -> tuple[Path, list[Path]]:
    """As `datasets.DatasetDict.save_to_disk` leaves it, as far as it is read."""
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (folder / "train").mkdir()
    return folder, [write_arrow(folder / "train", PNGS)]


def arrow_file(folder: Path) -> tuple[Path, list[Path]]:
    """With a footer, which streams do not have."""
    pa = pytest.importorskip("pyarrow")
    data = table(PNGS)
    with pa.OSFile(str(folder / "images.arrow"), "wb") as file, pa.ipc.new_file(file, data.schema) as writer:
        writer.write_table(data)
    return one_file(folder / "images.arrow")


def latents(file: str) -> Writer:
    def write(folder: Path) -> tuple[Path, list[Path]]:
        np.savez(folder / "images.npz", images=IMAGES[:, :, :4], labels=np.arange(6) % 3)
        collection, vae = load_collection(str(folder / "images.npz")), write_kl(folder / "vae")
        autoencoder = load_autoencoder(vae, torch.device("cpu"))
        encode(collection, autoencoder, (vae, "vae"), folder / "latents", Encoding(), progress=False)
        return folder / "latents", [folder / "latents" / file]

    return write


WRITERS: dict[str, Writer] = {
    "arrays: npy": numpy_array,
    "arrays: npz": numpy_archive,
    "cifar10": cifar,
    "edm_zip: PNG": edm("png", PNGS),
    "edm_zip: npy": edm("npy", [npy(image) for image in IMAGES]),
    "huggingface: Parquet": lambda folder: one_file(write_parquet(folder, PNGS)),
    "huggingface: Arrow stream": lambda folder: one_file(write_arrow(folder, PNGS)),
    "huggingface: Arrow file": arrow_file,
    "huggingface: save_to_disk": saved_to_disk,
    "image_folder": pictures,
    "latent_folder: numbers": latents("latents.npy"),
    "latent_folder: labels": latents("labels.npy"),
    "latent_folder: card": latents("latents.json"),
    "mnist": mnist(packed=False),
    "mnist: gz": mnist(packed=True),
    "webdataset: tar": lambda folder: one_file(write_tar(folder, PNGS)),
    "webdataset: shards": shards,
}


def damaged(whole: bytes) -> bytes:
    """Some bytes at both ends are others."""
    return b"".join(
        [
            whole[:8],
            bytes(byte ^ 0xA5 for byte in whole[8:72]),
            whole[72:-64],
            bytes(b ^ 0xA5 for b in whole[-64:]),
        ]
    )


FAULTS: dict[str, Callable[[bytes], bytes]] = {
    "damaged": damaged,
    "truncated": lambda whole: whole[: len(whole) // 2],
    "cut at its end": lambda whole: whole[:-20],
    "empty": lambda whole: b"",
    "foreign": lambda whole: b"<!doctype html><title>404</title>" * 200,
}
COMMANDS = {
    "inspect": ["data", "inspect", "{path}"],
    "train": ["train", "digits-teacher", *TINY, "data={path}", "--out", "run"],
}


def test_every_format_has_a_writer() -> None:
    assert {name.split(":")[0] for name in WRITERS} == set(DATASETS) - MADE_HERE


@pytest.mark.parametrize("format", WRITERS)
def test_without_a_fault_it_is_read(format: str, tmp_path: Path) -> None:
    path, _ = WRITERS[format](tmp_path)
    dataset = load_data(str(path))
    assert dataset.data.ndim == 4 and len(dataset.data) >= 6


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("format", WRITERS)
def test_a_fault_is_one_line(
    format: str,
    fault: str,
    command: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    path, files = WRITERS[format](tmp_path / "data")
    for file in files:
        file.write_bytes(FAULTS[fault](file.read_bytes()))
    assert cli.main([word.format(path=path) for word in COMMANDS[command]]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("trigflow: ") and shown.err.count("\n") == 1 and shown.out == ""
    named = {file.name for file in files} | {str(path)}
    assert any(name in shown.err for name in named), shown.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["data"]
