"""Rules for all commands: each option that takes a number declares its range."""

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

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
