"""The documentation tells the truth: links lead somewhere, commands parse, keys exist, lists are up to date."""

from __future__ import annotations

import importlib
import re
import runpy
from pathlib import Path

import pytest

from trigflow import recipes
from trigflow.commands import cli

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "trigflow"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = [
    (page.name, line.split("   #")[0].strip())
    for page in PAGES
    if page.name not in ("commands.md", "LOG.md")
    for line in page.read_text().splitlines()
    if line.startswith("trigflow ")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name != "LOG.md"], ids=lambda page: page.name
)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"`([a-z0-9_/]+/[a-z0-9_]*\.py)`", page.read_text())
    assert not [name for name in named if not any((root / name).exists() for root in (ROOT, SOURCE))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_the_code_of_a_page(page: Path) -> None:
    for module, names in re.findall(
        r"^from (trigflow[a-z0-9_.]*) import ([\w, ]+)$", page.read_text(), re.MULTILINE
    ):
        imported = importlib.import_module(module)
        assert all(hasattr(imported, name.strip()) for name in names.split(","))


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_parse(page: str, line: str) -> None:
    args = cli.parse(line.split()[1:])
    if args.command == "train" and args.recipe in recipes.RECIPES:
        recipes.get(args.recipe, args.overrides)


def test_the_list_of_commands_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["commands"]()
    assert (ROOT / "docs" / "commands.md").read_text() == made, "run `make docs`"


def test_the_tables_are_those_of_the_results() -> None:
    pages = {
        "README.md": ("digits", "mnist", "mixture2d"),
        "benchmarks/README.md": ("train_step", "data_loader", "attention"),
        "docs/precision.md": ("precision",),
        "docs/metrics.md": ("cifar10-small",),
        "docs/studies.md": (
            "digits-steps",
            "digits-speed",
            "digits-scaling",
            "digits-ablation",
            "digits-compute",
            "mnist-steps",
            "mnist-speed",
        ),
        "docs/scale.md": ("imagenet512-xxl", "imagenet512-xxl-h200", "paper_step"),
        "docs/attention.md": ("attention-h200",),
    }
    with_tables = runpy.run_path(str(ROOT / "docs" / "generate.py"))["with_tables"]
    for page, names in pages.items():
        text = (ROOT / page).read_text()
        for name in names:
            assert f"<!-- {name} -->" in text and (ROOT / "results" / f"{name}.json").exists()
        assert text == with_tables(text), "run `make docs`"


def test_the_cards_of_the_shipped_models_are_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["cards"]()
    assert (ROOT / "src" / "trigflow" / "models" / "pretrained" / "README.md").read_text() == made, (
        "run `make docs`"
    )


def test_the_list_of_results_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))["results"]()
    assert (ROOT / "results" / "README.md").read_text() == made, "run `make docs`"
