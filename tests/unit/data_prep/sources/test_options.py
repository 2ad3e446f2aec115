import argparse
from pathlib import Path

import pytest

from common.command_line import UserError
from data_prep.sources.documents import ReadOptions
from data_prep.sources.options import add_source_arguments, read_options, sources_of
from tests.helpers.records import write_tree


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args(words)


def test_options_and_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _parsed("--input", "a", "b", "--extensions", ".py")
    assert (arguments.input, arguments.extensions, arguments.text_field) == (["a", "b"], [".py"], "text")
    assert read_options(arguments, fields=()) == ReadOptions(fields=())
    assert read_options(_parsed("--input", "a", "--strict")).bad_input == "refuse"
    for wrong in (["--input", "a", "--mix", "a=a:1"], []):
        with pytest.raises(SystemExit):
            _parsed(*wrong)
    assert "not allowed with" in capsys.readouterr().err


def test_a_summary_holds_the_weight_and_languages(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.py", "b.c")
    arguments = _parsed("--mix", f"py={tmp_path}#python:2", f"c={tmp_path}#c:0.5")
    first, second = sources_of(arguments, work=tmp_path)
    common = {"path": str(tmp_path), "files": 2, "bytes": 7}
    assert first.summary() == common | {"name": "py", "weight": 2.0, "languages": ["python"]}
    assert second.summary() == common | {"name": "c", "weight": 0.5, "languages": ["c"]}


def test_strict_refuses_entries_that_cannot_be_read(tmp_path: Path) -> None:
    write_tree(tmp_path, "a.py")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match=r"loop: symlink \(.*not followed\); repair it, or omit --strict"):
        sources_of(_parsed("--input", str(tmp_path), "--strict"), work=tmp_path)
