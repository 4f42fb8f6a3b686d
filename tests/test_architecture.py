"""The house: a file imports only from lower floors, or from its own floor without a circle."""

from __future__ import annotations

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import trigflow

SOURCE = Path(trigflow.__file__).parent

# The first part of a module's name below `trigflow` -> its floor.
FLOORS = {
    **dict.fromkeys(
        ("version", "errors", "launch", "randomness", "dual", "ema", "config", "devices", "machine"), 1
    ),
    **dict.fromkeys(("distributed", "files", "timing"), 1),
    **dict.fromkeys(
        (
            "flow",
            "schedules",
            "oracles",
            "codecs",
            "guidance",
            "metrics",
            "networks",
            "data",
            "recipe",
            "autoencoder",
        ),
        2,
    ),
    **dict.fromkeys(("precond", "sharding", "samplers", "time_sampling", "labels"), 3),
    **dict.fromkeys(
        ("objectives", "optim", "loss_scale", "checkpoint", "checkpoint_shards", "checkpoint_folder"), 4
    ),
    **dict.fromkeys(("assembly", "run_folder", "progress", "synthetic", "trained", "run_state", "train"), 5),
    **dict.fromkeys(("model", "shipped", "pictures", "page", "classifier", "evaluation"), 5),
    **dict.fromkeys(("recipes", "diagram", "demo", "doctor", "plan", "studies", "bench"), 6),
    **dict.fromkeys(("commands", "cli", "__main__"), 7),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
FILES.pop("__init__")  # the public face names everything


def package_of(path: Path) -> str:
    return ".".join(("trigflow", *path.parent.relative_to(SOURCE).parts))


def imported(name: str, path: Path) -> set[str]:
    """The modules of ours that a file imports, at its head or inside a function; imports for types alone do not run."""
    tree = ast.parse(path.read_text())
    for_types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if node in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            source = importlib.util.resolve_name("." * node.level + (node.module or ""), package_of(path))
            found |= {f"{source}.{alias.name}" for alias in node.names} | {source}
    ours = {full.removeprefix("trigflow.") for full in found if full.startswith("trigflow.")}
    # `from trigflow.data import X` names a package and perhaps its file: keep the files that exist.
    return {module for module in ours if module in FILES and module != name}


def floor(name: str) -> int:
    first = name.split(".")[0]
    assert first in FLOORS, f"give '{first}' a floor in FLOORS"
    return FLOORS[first]


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_its_own_floor_or_below(name: str) -> None:
    higher = {other for other in imported(name, FILES[name]) if floor(other) > floor(name)}
    assert not higher, f"{name} (floor {floor(name)}) imports {higher}"


def test_no_circles() -> None:
    """`static_order` raises CycleError and names the circle."""
    graph = {name: imported(name, path) for name, path in FILES.items()}
    assert set(TopologicalSorter(graph).static_order()) == set(FILES)


@pytest.mark.parametrize("name", FILES)
def test_files_are_short(name: str) -> None:
    assert len(FILES[name].read_text().splitlines()) <= 400


@pytest.mark.parametrize("name", FILES)
def test_functions_are_short(name: str) -> None:
    functions = (
        node
        for node in ast.walk(ast.parse(FILES[name].read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {
        f.name: f.end_lineno - f.lineno + 1
        for f in functions
        if f.end_lineno and f.end_lineno - f.lineno >= 60
    }
    assert not long


@pytest.mark.parametrize("name", FILES)
def test_every_file_says_what_it_is_for(name: str) -> None:
    assert ast.get_docstring(ast.parse(FILES[name].read_text()))
