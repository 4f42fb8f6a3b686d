"""What is handed out: the source distribution, the wheel built from it, and the package installed from that."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import trigflow

ROOT = Path(__file__).parent.parent
PACKAGE = Path(trigflow.__file__).parent
SOURCES = (
    "pyproject.toml",
    "MANIFEST.in",
    "mkdocs.yml",
    "constraints.txt",
    "LICENSE",
    "NOTICE",
    "CITATION.cff",
)
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")


@dataclass(frozen=True)
class Release:
    """The files to hand out, and the environment where the wheel is installed."""

    sdist: Path
    wheel: Path
    venv: Path

    def run(self, *command: str) -> str:
        """What a command of the environment prints."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        program = self.venv / "bin" / command[0]
        done = subprocess.run(
            [program, *command[1:]], cwd=self.venv, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def build(kind: str, source: Path, out: Path) -> Path:
    """Runs the build backend, as `python -m build --no-isolation` does, without the network."""
    program = f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, capture_output=True)
    return next(out.glob({"sdist": "*.tar.gz", "wheel": "*.whl"}[kind]))


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Built from a copy of the checkout and installed beside the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("release")
    checkout, out, venv = folder / "checkout", folder / "dist", folder / "venv"
    unwanted = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for name in ("src", "docs", "examples", "tests"):
        shutil.copytree(ROOT / name, checkout / name, ignore=unwanted)
    for name in (*SOURCES, *PAGES):
        shutil.copy(ROOT / name, checkout)

    sdist = build("sdist", checkout, out)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    wheel = build("wheel", folder / sdist.name.removesuffix(".tar.gz"), out)

    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--python", venv / "bin" / "python"]
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--ignore-installed", wheel],
        check=True,
        capture_output=True,
    )
    paths = sysconfig.get_paths("venv", vars={"base": str(venv), "platbase": str(venv)})
    ours = [path for path in sys.path if path.endswith("-packages")]
    (Path(paths["purelib"]) / "dependencies.pth").write_text("\n".join(ours))
    return Release(sdist, wheel, venv)


def test_the_source_distribution_holds_what_a_build_and_its_reader_need(release: Release) -> None:
    with tarfile.open(release.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")}
    assert {*SOURCES, *PAGES, *pages} <= names
    assert not [name for name in names if name.startswith("tests")]


def test_the_wheel_holds_the_package_its_models_and_its_licence(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as wheel:
        names, size = set(wheel.namelist()), sum(entry.compress_size for entry in wheel.infolist())
    wanted = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.safetensors"), PACKAGE / "py.typed"]
    assert len([path for path in wanted if path.suffix == ".safetensors"]) > 1
    assert {path.relative_to(PACKAGE.parent).as_posix() for path in wanted} <= names
    assert {"LICENSE", "NOTICE"} <= {name.rpartition("licenses/")[2] for name in names}
    assert not [name for name in names if name.startswith(("tests", "docs", "examples"))]
    assert size < 20e6


def test_the_installed_command_answers(release: Release) -> None:
    assert release.run("trigflow", "--version") == f"trigflow {trigflow.__version__}\n"
    assert re.search(r"^  digits ", release.run("trigflow", "list"), re.MULTILINE)


def test_the_installed_package_samples_with_a_shipped_model(release: Release) -> None:
    program = """import trigflow
print(trigflow.__file__)
print(tuple(trigflow.load("digits", "cpu").sample(4, steps=2, seed=0).shape))"""
    file, shape = release.run("python", "-c", program).splitlines()
    assert Path(file).is_relative_to(release.venv)
    assert shape == "(4, 1, 8, 8)"


def test_the_version_is_told_once(release: Release) -> None:
    with zipfile.ZipFile(release.wheel) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_bytes(wheel.read(name))
    assert metadata["Version"] == trigflow.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    newest = re.search(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] == trigflow.__version__


def test_the_citation_is_that_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == trigflow.__version__
    assert citation["license"] == "Apache-2.0"
    assert citation["type"] == "software"
    assert {"message", "title", "abstract", "authors"} <= citation.keys()
    assert "2410.11081" in citation["references"][0]["url"]
