import argparse
import json
from pathlib import Path

import pytest

from benchmarks.parts.harness import LiveTable, benchmark_parser, markdown, run_benchmark
from common.command_line import UserError


def test_a_table_is_markdown() -> None:
    assert markdown([["a", "long"], ["x", "1"]]) == "| a | long |\n|---|------|\n| x | 1    |"


def test_a_live_table_is_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    LiveTable("a", "long").add("x", "1")
    assert capsys.readouterr().out == "| a | long |\n|---|---|\n| x | 1 |\n"


def _parser() -> argparse.ArgumentParser:
    return benchmark_parser("benchmarks.x", description=None, ranks=2, warm_up=1, repeats=3, plot=True)


def test_the_figures_are_written_as_json(tmp_path: Path) -> None:
    arguments = ["--repeats", "5", "--json", str(tmp_path / "x.json")]
    run_benchmark(_parser(), lambda parsed: {"ranks": parsed.ranks, "repeats": parsed.repeats}, arguments)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"ranks": 2, "repeats": 5}


def test_every_mistake_is_reported_before_anything_is_measured(tmp_path: Path) -> None:
    numbers = ["--ranks", "0", "--warm_up", "-1", "--repeats", "0"]
    with pytest.raises(UserError) as raised:
        run_benchmark(_parser(), lambda _: pytest.fail("measured"), numbers)
    assert str(raised.value).splitlines() == [
        "bad arguments:",
        "  - --ranks must be a whole number from 1 to 1,000,000, not 0",
        "  - --warm_up must be a whole number from 0 to 1,000,000, not -1",
        "  - --repeats must be a whole number from 1 to 1,000,000, not 0",
    ]
    arguments = ["--json", str(tmp_path / "absent" / "x.json"), "--plot", str(tmp_path / "absent" / "x.png")]
    with pytest.raises(UserError) as raised:
        run_benchmark(_parser(), lambda _: pytest.fail("measured"), arguments, check=lambda _: ["its own mistake"])
    assert str(raised.value).splitlines() == [
        "bad arguments:",
        "  - its own mistake",
        f"  - --json {tmp_path}/absent/x.json: there is no folder {tmp_path}/absent",
        f"  - --plot {tmp_path}/absent/x.png: there is no folder {tmp_path}/absent",
    ]
