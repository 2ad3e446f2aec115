"""Readers of metrics.jsonl skip damaged lines, wait for nothing, and need no more memory than a line."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from common.small_files import BadFileError
from pipeline.runtime.metrics_lines import MOST_LINE_BYTES, json_object, last_step, metrics_lines

NO_LINES = (b"\0\0\0", b"\xff", b"[]", b"{}", b'{"step": "2"}', b'{"step": true}', b'{"step": -1}', b'{"step": 1e3}')
DAMAGED = b'{"step": 1}\n' + b"\n".join(NO_LINES) + b'\n{"step": 3, "loss/total": 1.8e308}\n{"step": 4}'


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(DAMAGED)
    assert list(metrics_lines(path)) == [
        (b'{"step": 1}\n', {"step": 1}),
        (b'{"step": 3, "loss/total": 1.8e308}\n', {"step": 3, "loss/total": float("inf")}),
    ]
    assert last_step(path) == 3


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert list(metrics_lines(tmp_path / "metrics.jsonl")) == []
    assert last_step(tmp_path / "metrics.jsonl") == 0


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link_to_zeros])
def test_what_is_no_file_is_not_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    make(path)
    with pytest.raises(BadFileError, match=r"metrics.jsonl cannot be read: it is a .*, not a file"):
        list(metrics_lines(path))
    assert last_step(path) == 0


def test_a_line_without_end_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(300 << 20)  # sparse: zeros
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert last_step(path) == 0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 40 * MOST_LINE_BYTES >> 10


@pytest.mark.parametrize(
    "line", ["", "{", "[1]", "7", "[" * 100_000, '{"a":' * 900 + "1" + "}" * 900, f'{{"a": 1{"0" * 400}}}']
)
def test_what_is_no_object(line: str) -> None:
    assert json_object(line.encode()) is None
