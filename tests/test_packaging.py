"""Every dependency of the package and of its extras is pinned."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain(*project["optional-dependencies"].values())]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {line.split("==")[0].lower() for line in lines if "==" in line and not line.startswith("#")}
    assert {re.match(r"[\w-]+", name)[0].lower() for name in wanted} <= pins
    assert "torch==2.13.0" in lines
