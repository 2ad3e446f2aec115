"""Readers of metrics.jsonl skip lines that a kill cut short or a disk damaged."""

from pathlib import Path

import pytest

from pipeline.runtime.metrics_lines import json_object, last_step, metrics_lines

DAMAGED = b'{"step": 1}\n\0\0\0\n\xff\n[]\n{}\n{"step": "2"}\n{"step": 3, "loss/total": 2.5}\n{"step": 4}'


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(DAMAGED)
    assert list(metrics_lines(path)) == [
        ('{"step": 1}\n', {"step": 1}),
        ('{"step": 3, "loss/total": 2.5}\n', {"step": 3, "loss/total": 2.5}),
    ]
    assert last_step(path) == 3


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(metrics_lines(tmp_path / "metrics.jsonl")) == []
    assert last_step(tmp_path / "metrics.jsonl") == 0


@pytest.mark.parametrize("line", ["", "{", "[1]", "7", "[" * 100_000])
def test_what_is_no_object(line: str) -> None:
    assert json_object(line) is None
