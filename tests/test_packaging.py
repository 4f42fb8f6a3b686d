"""What is built and installed: version, wheel, licence, pins."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest

import trigflow

ROOT = Path(__file__).parent.parent
PRETRAINED = Path(trigflow.__file__).parent / "models" / "pretrained"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the checkout without touching the network."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
    ]
    subprocess.run([*command, out, source], check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_the_wheel_holds_every_module_the_type_marker_and_the_licence(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    package = Path(trigflow.__file__).parent
    modules = {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    assert modules <= names
    assert "trigflow/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any(name.startswith("tests") for name in names)


def test_the_wheel_holds_the_shipped_models(wheel: zipfile.ZipFile) -> None:
    shipped = {
        f"trigflow/models/pretrained/{path.relative_to(PRETRAINED)}"
        for path in PRETRAINED.rglob("*.safetensors")
    }
    assert shipped
    assert shipped <= set(wheel.namelist())


def test_the_wheel_is_small(wheel: zipfile.ZipFile) -> None:
    assert sum(entry.compress_size for entry in wheel.infolist()) < 20e6


def test_the_changelog_tells_the_version() -> None:
    newest = re.search(r"^## (?!Unreleased)(\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == trigflow.__version__


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line and not line.startswith("#")}
    assert {re.match(r"[\w-]+", name)[0].lower() for name in wanted} <= pins
    assert "torch==2.13.0" in lines
