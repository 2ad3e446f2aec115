"""Rules for all commands: numbers have ranges, and interrupts and full disks end them in the same way."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_module

SOURCES = sorted(
    path
    for package in ("benchmarks", "common", "data_prep", "pipeline")
    for path in (REPOSITORY / package).rglob("*.py")
)


def _options_without_range(path: Path) -> list[int]:
    """Return the lines that add an option of any int or float, unless its values are listed."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    keywords = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in calls]
    return [
        call.lineno
        for call, given in zip(calls, keywords, strict=True)
        if given.get("type") in ("int", "float") and "choices" not in given
    ]


def test_the_search_finds_such_options(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("add('--a', type=int)\nadd('--b', type=int, choices=[1])\nadd('--c', type=float)\n")
    assert _options_without_range(tmp_path / "x.py") == [1, 3]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_each_option_that_takes_a_number_declares_its_range(path: Path) -> None:
    assert _options_without_range(path) == []


def _options_without_path_type(path: Path) -> list[int]:
    """Return the lines that add an argument that takes a path, but would take ~ for the name of a folder."""
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    keywords = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in calls]
    return [
        call.lineno
        for call, given in zip(calls, keywords, strict=True)
        if given.get("type") == "Path"
        or (re.search(r"FILE|DIR|RUN|SRC|PNG", given.get("metavar", "")) and "type" not in given)
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_each_option_that_takes_a_path_replaces_the_home_folder(path: Path) -> None:
    if path.relative_to(REPOSITORY).parts[0] != "benchmarks":
        assert _options_without_path_type(path) == []


def _front_doors() -> dict[str, Path]:
    """Return the modules that users run with `python -m`, with their paths."""
    found = {}
    for path in SOURCES:
        if re.search(r"^    exit_on_user_error\(", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__main__" else parts)] = path
    return found


FRONT_DOORS = _front_doors()
every_command = pytest.mark.parametrize("command", FRONT_DOORS)
every_quick_command = pytest.mark.parametrize("command", [c for c in FRONT_DOORS if not c.startswith("benchmarks.")])
INTERRUPTING = """
import os, signal, time
os.kill(os.getpid(), signal.SIGINT)
time.sleep(60)
"""


def test_the_commands_are_found() -> None:
    assert {"pipeline.train", "data_prep.write_shards", "benchmarks.data_prep", "pipeline.audit"} <= set(FRONT_DOORS)


@every_command
def test_a_command_imports_first_what_guards_its_imports(command: str) -> None:
    """So does everything that it imports: Ctrl-C during the first other import ends it with one line and 130."""
    body = ast.parse(FRONT_DOORS[command].read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    assert ast.unparse(first).startswith("from common.endings import exit_on_user_error")


@every_quick_command
def test_a_command_also_runs_as_a_file_from_any_folder(command: str, tmp_path: Path) -> None:
    """Its folder's modules hide none of other packages: pipeline/report.py, data_prep/stats.py and so on."""
    said = run_module(command, "--help").stdout
    done = subprocess.run(
        [sys.executable, FRONT_DOORS[command], "--help"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == said


@pytest.fixture(scope="module")
def interrupted_at_argparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose argparse sends Ctrl-C to the process that imports it."""
    folder = tmp_path_factory.mktemp("interrupting")
    (folder / "argparse.py").write_text(INTERRUPTING)
    return folder


@every_command
def test_ctrl_c_during_imports_is_a_line_and_130(command: str, interrupted_at_argparse: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", command, "--version"], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(interrupted_at_argparse)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (130, f"\n{command}: interrupted\n")


@every_quick_command
def test_a_full_disk_under_its_output_is_exit_code_2(command: str) -> None:
    call = shlex.join([sys.executable, "-m", command])
    for words in ("--version > /dev/full", "--no_such_option 2> /dev/full"):
        done = subprocess.run(
            ["bash", "-c", f"{call} {words}"], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )  # fmt: skip
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
