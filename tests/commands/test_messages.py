"""What messages recommend exists: every flag and verb that stands in a text of the package."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY

import trigflow
from trigflow.commands import cli

FLAGS_OF_GIT = {"--abbrev", "--always", "--dirty", "--error-unmatch", "--exclude"}
VERBS = cli.verbs(cli.build_parser())


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the package, with its file."""
    for file in sorted(Path(trigflow.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield file.name, node.value


def test_flags_and_verbs_that_are_recommended_exist() -> None:
    flags = {flag for verb in VERBS.values() for action in verb._actions for flag in action.option_strings}
    known = flags | FLAGS_OF_GIT | {"--debug", "--version"}
    for file, text in texts():
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]*", text):
            assert flag in known, (file, text)
        for verb in re.findall(r"trigflow ([a-z][a-z-]+)", text):
            assert verb in VERBS, (file, text)


def test_verbs_that_load_models_take_trust_code() -> None:
    """Else an error could recommend a flag that the verb does not know."""
    for name in ("bench", "doctor", "evaluate", "info", "plan", "sample", "train"):
        assert "--trust-code" in VERBS[name]._option_string_actions


def test_the_hint_after_a_training_is_a_command_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = [word for word in TINY if not word.startswith("network")]
    network = "network=trigflow.networks.mlp:MLP"
    assert cli.main(["train", "digits-teacher", *own, network, "--out", "run", "--device", "cpu"]) == 0
    hint = capsys.readouterr().out.strip().partition("trigflow ")[2]
    assert hint == "sample run --trust-code --out samples.png"
    assert cli.main([*hint.split(), "--steps", "1", "--device", "cpu"]) == 0
