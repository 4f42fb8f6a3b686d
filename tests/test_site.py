"""The documentation builds as a site without a warning, and reads without a server or the internet."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import trigflow

ROOT = Path(__file__).parent.parent
NEEDED = ("mkdocs", "material", "mkdocstrings", "griffe")
pytestmark = pytest.mark.skipif(
    not all(map(find_spec, NEEDED)), reason="the site needs the extra docs: pip install -e .[docs]"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site; a broken link or reference, or a parameter that a docstring invents, fails its build."""
    out = tmp_path_factory.mktemp("site")
    # --quiet would silence what --strict counts
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_there(site: Path) -> None:
    pages = {f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert pages | {"index.html", "CONTRIBUTING.html", "CHANGELOG.html"} <= {
        path.name for path in site.iterdir()
    }


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*href=["']?(?:https?:)?//"""
    )
    assert not [page.name for page in site.rglob("*.html") if loads.search(page.read_text())]
    assert not [
        sheet.name for sheet in site.rglob("*.css") if re.search(r"url\(['\"]?https?:", sheet.read_text())
    ]


def test_the_search_needs_no_server(site: Path) -> None:
    assert (site / "search" / "search_index.js").read_text().startswith("var __index = ")
    assert 'src="javascripts/iframe-worker.js"' in (site / "index.html").read_text()


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    names = (site / "reference" / "index.html").read_text()
    assert not [name for name in trigflow.__all__ if f"<code>trigflow.{name}</code>" not in names]
    for package, name in (
        ("objectives", "scm.SCM"),
        ("dual", "derivative.value_and_tangent"),
        ("models", "model.load"),
    ):
        assert f'id="trigflow.{package}.{name}"' in (site / "reference" / f"{package}.html").read_text()
