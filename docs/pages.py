"""Pages of the site that are no files of docs/: those beside it, the examples, and the API reference (mkdocs.yml).

A reference page lists the modules of a package. mkdocstrings fills in their docstrings from the source, unimported.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# A page or file of the site, and its file in the repository.
BESIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CITATION.cff": "CITATION.cff",
    "benchmarks.md": "benchmarks/README.md",
    "models.md": "src/trigflow/models/pretrained/README.md",
    "results.md": "results/README.md",
}
PACKAGES = (
    *("core", "dual", "networks", "objectives", "recipes", "data", "data.formats", "data.prepare", "models"),
    *("evaluation", "evaluation.metrics", "training"),
)
LANGUAGES = {".py": "python", ".slurm": "bash"}


def on_config(config: MkDocsConfig) -> None:
    """The pages of the reference take the place of `reference/` in the navigation."""
    pages = ["reference/index.md", *({name: f"reference/{name}.md"} for name in PACKAGES)]
    for section in config.nav or []:
        for entry in next(iter(section.values())) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and entry.get("API") == "reference/":
                entry["API"] = pages


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are no files of docs/."""
    made = {uri: (ROOT / source).read_text() for uri, source in BESIDE.items()}
    made |= {"examples.md": examples(), **reference()}
    for uri, text in made.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site; what leads nowhere is left, and fails a strict build."""
    here = page.file.src_uri
    home = posixpath.dirname(BESIDE.get(here, f"docs/{here}"))

    def moved(link: re.Match[str]) -> str:
        uri = _on_site(posixpath.normpath(posixpath.join(home, link[1])))
        found = uri and files.get_file_from_path(uri)
        return f"]({posixpath.relpath(uri, posixpath.dirname(here) or '.')}" if found else link[0]

    return re.sub(r"\]\(([^)#\s:]+)", moved, markdown)


def _on_site(path: str) -> str:
    """The page of a file in the repository."""
    if path.split("/")[0] == "examples":
        return "examples.md"
    pages = {source: uri for uri, source in BESIDE.items()}
    return pages.get(path, path.removeprefix("docs/"))


def examples() -> str:
    """Every file of examples/, with its code."""
    parts = ["# Examples"]
    for path in sorted((ROOT / "examples").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            code = path.read_text().rstrip()
            parts += [f"## {path.relative_to(ROOT)}", f"```{LANGUAGES.get(path.suffix, 'text')}\n{code}\n```"]
    return "\n\n".join(parts) + "\n"


def reference() -> dict[str, str]:
    """A page for the names of `trigflow`, and one for each package."""
    package = griffe.load("trigflow", search_paths=[ROOT / "src"], allow_inspection=False)
    pages = {f"reference/{name}.md": _package_page(name, package[name]) for name in PACKAGES}
    table = ["| name | documented in |", "|:--|:--|", *_exports(package)]
    parts = ["# trigflow", _module("trigflow", []), "\n".join(table), "::: trigflow.system.errors.UserError"]
    return {"reference/index.md": "\n\n".join(parts) + "\n", **pages}


def _exports(package: griffe.Object) -> Iterator[str]:
    """The names that a package exports, as rows of a table."""
    for name in map(str, package.exports or ()):
        path = package[name].canonical_path
        where = f"[`{path}`][{path}]" if name != "__version__" else "the version, a string"
        yield f"| `{package.path}.{name}` | {where} |"


def _package_page(name: str, package: griffe.Object) -> str:
    """The package's own names, then its modules that have any; what a package re-exports is in its module."""
    own = [member.name for member in package.members.values() if _public(member) and not member.is_module]
    modules = [
        each for _, each in sorted(package.modules.items()) if any(map(_public, each.members.values()))
    ]
    subpackages = [each for each in modules if each.path.removeprefix("trigflow.") in PACKAGES]
    parts = [f"# {name}", _module(package.path, own)]
    return "\n\n".join([*parts, *(f"::: {each.path}" for each in modules if each not in subpackages)]) + "\n"


def _module(path: str, members: list[str]) -> str:
    """A package without a heading, and with these of its names only."""
    return f"::: {path}\n    options: {{members: {members}, show_root_heading: false}}"


def _public(member: griffe.Object | griffe.Alias) -> bool:
    return not member.is_alias and not member.name.startswith("_") and member.has_docstring
