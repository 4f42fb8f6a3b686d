"""The cache folder where there is no home: an unknown uid, an empty HOME, a home that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import trigflow
from trigflow.system import cache

SOURCES = str(Path(trigflow.__file__).parents[1])

# As an unknown uid of a container: the system knows no home.
UNKNOWN = "import pwd; pwd.getpwuid = {}.__getitem__\n"
ASK = "from trigflow.system.cache import cache_folder; print(cache_folder()); cache_folder()"


def asked(code: str, tmp_path: Path, **environment: str) -> tuple[str, str]:
    """What a process of this environment alone prints on stdout and stderr."""
    (tmp_path / "tmp").mkdir(exist_ok=True)
    environment = {"PYTHONPATH": SOURCES, "TMPDIR": str(tmp_path / "tmp"), **environment}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.strip(), done.stderr.strip()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no uids")
@pytest.mark.parametrize("home", [None, "", "/", "relative", "nowhere", "read-only", "a file in it"])
def test_without_a_home_the_cache_is_a_folder_for_temporary_files(home: str | None, tmp_path: Path) -> None:
    (tmp_path / "read-only").mkdir()
    (tmp_path / "read-only" / ".cache").symlink_to(
        "/proc/self/fdinfo"
    )  # which nobody can write, not even root
    (tmp_path / "a file in it").mkdir()
    (tmp_path / "a file in it" / ".cache").write_text("")
    places = {"nowhere", "read-only", "a file in it"}
    given = {} if home is None else {"HOME": str(tmp_path / home) if home in places else home}
    out, said = asked(UNKNOWN + ASK, tmp_path, **given)
    folder = tmp_path / "tmp" / f"trigflow-{os.getuid()}"
    assert out == str(folder) and folder.stat().st_mode & 0o777 == 0o700
    assert said == f"no home that can be written: the cache is {folder} ($TRIGFLOW_CACHE)"  # once


def test_where_the_cache_is_with_a_home(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    home = {"HOME": str(tmp_path / "home")}
    assert asked(ASK, tmp_path, **home) == (str(tmp_path / "home" / ".cache" / "trigflow"), "")
    caches = {**home, "XDG_CACHE_HOME": str(tmp_path / "xdg")}
    assert asked(ASK, tmp_path, **caches) == (str(tmp_path / "xdg" / "trigflow"), "")
    assert asked(ASK, tmp_path, **caches, TRIGFLOW_CACHE="/own") == ("/own", "")


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(cache.os, "getuid", lambda: 4242, raising=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "trigflow-4242").symlink_to(tmp_path / "other")
    for _ in range(2):
        with pytest.raises(trigflow.UserError, match="belongs to another user: set TRIGFLOW_CACHE"):
            cache._temporary()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="there are no uids")
def test_evaluate_without_a_home(tmp_path: Path) -> None:
    command = ["evaluate", "digits", "--steps", "1", "--num", "8", "--seeds", "1", "--teacher", "none"]
    command += ["--features", "pixels"]
    code = f"from trigflow.commands.cli import main; import sys; sys.exit(main({command}))"
    _, said = asked(UNKNOWN + code, tmp_path, OMP_NUM_THREADS="1")
    folder = tmp_path / "tmp" / f"trigflow-{os.getuid()}"
    assert list(folder.glob("reference-*")) and said.count(str(folder)) == 1
    assert "atplotlib" not in said and [folder] == list((tmp_path / "tmp").iterdir())
