"""The public face: what `trigflow` promises is there, in order, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import trigflow

NAMES = {
    *(
        "Diffusion",
        "Model",
        "Recipe",
        "SCM",
        "SampleRandom",
        "TrigFlowPrecond",
        "UserError",
        "__version__",
        "dual",
    ),
    *(
        "ema",
        "evaluate",
        "flow",
        "guidance",
        "load",
        "load_data",
        "metrics",
        "networks",
        "objectives",
        "oracles",
    ),
    *("recipes", "reconstruct", "samplers", "schedules", "train"),
}


def test_the_public_names_are_these() -> None:
    assert set(trigflow.__all__) == NAMES and len(trigflow.__all__) == len(NAMES)
    assert dir(trigflow) == sorted(NAMES)


def test_names_for_type_checkers_equal_the_names_at_run_time() -> None:
    tree = ast.parse(Path(trigflow.__file__).read_text())
    imports = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module != "typing"
    ]
    named = {alias.name for node in imports for alias in node.names} - {"annotations"}
    assert named == set(trigflow.__all__)


@pytest.mark.parametrize("name", trigflow.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(trigflow, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'smaple'"):
        trigflow.smaple  # noqa: B018


def test_importing_the_package_and_its_command_does_not_import_torch() -> None:
    heavy = "{'torch', 'numpy', 'pydantic'}"
    program = f"import sys, trigflow, trigflow.commands.cli; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
