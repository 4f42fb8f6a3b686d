"""The layout: packages import only downwards, files without a circle; the floors are computed from the imports.

`python tests/test_architecture.py` prints the floors.
"""

from __future__ import annotations

import ast
import importlib.util
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import trigflow

SOURCE = Path(trigflow.__file__).parent
MOST_PACKAGES, MOST_FLOORS = 14, 9
EXEMPT = {"__init__"}  # the public face, which names everything


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {name: path for path in sorted(SOURCE.rglob("*.py")) if (name := module_name(path)) not in EXEMPT}


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


def package(name: str) -> str:
    return name.split(".")[0]


IMPORTS = {name: imported(name, path) for name, path in FILES.items()}


def package_imports() -> dict[str, set[str]]:
    """Package -> the other packages that its files import."""
    found: dict[str, set[str]] = {package(name): set() for name in FILES}
    for name, others in IMPORTS.items():
        found[package(name)] |= {package(other) for other in others} - {package(name)}
    return found


def floors() -> dict[str, int]:
    """Package -> 1 + the highest floor that it imports from; CycleError names a circle."""
    graph = package_imports()
    found: dict[str, int] = {}
    for name in TopologicalSorter(graph).static_order():
        found[name] = 1 + max((found[other] for other in graph[name]), default=0)
    return found


def test_packages_import_only_downwards() -> None:
    """`static_order` raises CycleError and names the circle: any two packages have one direction."""
    assert max(floors().values()) <= MOST_FLOORS


def test_there_are_few_packages() -> None:
    packages = {package(name) for name in FILES} - {"__main__"}
    assert len(packages) <= MOST_PACKAGES


def test_files_lie_in_packages() -> None:
    loose = {path.name for path in SOURCE.glob("*.py")}
    assert loose == {"__init__.py", "__main__.py"}


def test_files_have_no_circles() -> None:
    assert set(TopologicalSorter(IMPORTS).static_order()) == set(FILES)


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


if __name__ == "__main__":
    for floor in sorted(set(floors().values()), reverse=True):
        print(floor, *sorted(name for name, own in floors().items() if own == floor))
