"""The log of completions, and the folder of an evaluation that holds it."""

import json
import os
import resource
import tracemalloc
from pathlib import Path

import pytest

from common.command_line import UserError
from pipeline.inference.evaluation.completion_log import CompletionId, CompletionLog, open_folder

FIRST = CompletionId("a/0", 0.1, 0)
FIELDS = ("outcome",)


def test_the_log_returns_what_was_added(tmp_path: Path) -> None:
    with CompletionLog(tmp_path / "log.jsonl", fields=FIELDS) as log:
        assert log.entries == {}
        log.add([(FIRST, {"outcome": "é\n\u2028\0"}), (FIRST._replace(number=1), {"outcome": ""})])
        assert len(log.entries) == 2
    with CompletionLog(tmp_path / "log.jsonl", fields=FIELDS) as log:
        assert log.entries == {FIRST: {"outcome": "é\n\u2028\0"}, FIRST._replace(number=1): {"outcome": ""}}


@pytest.mark.parametrize(
    "torn", ['{"task_id": "a/0", "tempe', '{"task_id": "a/0", "temperature": 0.1, "number": 1}', "{"]
)
def test_a_torn_last_line_is_cut_off(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "log.jsonl"
    with CompletionLog(path, fields=FIELDS) as log:
        log.add([(FIRST, {"outcome": "passed"})])
    with path.open("a") as file:
        file.write(torn)
    with CompletionLog(path, fields=FIELDS) as log:
        assert list(log.entries) == [FIRST]
        log.add([(FIRST._replace(number=1), {"outcome": "failed"})])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["outcome"] for row in rows] == ["passed", "failed"]


@pytest.mark.parametrize(
    "line",
    [
        "{}",
        "[]",
        "text",
        "null",
        "[" * 100_000,
        '{"task_id": "a"}',
        '{"task_id": ["a"], "temperature": 0.1, "number": 1, "outcome": "x"}',
        '{"task_id": "a", "temperature": {}, "number": 1, "outcome": "x"}',
        '{"task_id": "a", "temperature": NaN, "number": 1, "outcome": "x"}',
        '{"task_id": "a", "temperature": 0.1, "number": 1, "outcome": 3}',
        '{"task_id": "a", "temperature": 0.1, "number": 1}',
    ],
)
def test_a_line_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"log.jsonl: line 1 was not written by an evaluation"):
        CompletionLog(tmp_path / "log.jsonl", fields=FIELDS)


def test_a_line_of_any_length_takes_little_memory_and_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for ending in ("", "\n"):
        path.write_bytes(bytes(200 << 20) + ending.encode())
        tracemalloc.start()
        with pytest.raises(UserError, match=r"line 1 was not written by an evaluation: it is too long"):
            CompletionLog(path, fields=())
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
        tracemalloc.stop()
        assert path.stat().st_size == (200 << 20) + len(ending)


def test_only_one_process_may_open_a_log(tmp_path: Path) -> None:
    with (
        CompletionLog(tmp_path / "log.jsonl", fields=FIELDS),
        pytest.raises(UserError, match="is being written by another evaluation"),
    ):
        CompletionLog(tmp_path / "log.jsonl", fields=FIELDS)
    with CompletionLog(tmp_path / "log.jsonl", fields=FIELDS):
        pass


def test_a_full_disk_is_reported_and_earlier_lines_survive(tmp_path: Path) -> None:
    path, unlimited = tmp_path / "log.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    with CompletionLog(path, fields=FIELDS) as log:
        log.add([(FIRST, {"outcome": "passed"})])
    size = path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, unlimited[1]))
    try:
        with (
            CompletionLog(path, fields=FIELDS) as log,
            pytest.raises(UserError, match=r"log.jsonl cannot be written: File too large"),
        ):
            log.add([(FIRST._replace(number=1), {"outcome": "failed"})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert path.stat().st_size == size + 9
    with CompletionLog(path, fields=FIELDS) as log:
        assert list(log.entries) == [FIRST]
    assert path.stat().st_size == size


def test_a_folder_keeps_its_settings(tmp_path: Path) -> None:
    settings = {"seed": 1, "temperatures": (0.1, 0.8), "first_token": None}
    open_folder(tmp_path / "new" / "out", settings)
    open_folder(tmp_path / "new" / "out", settings)
    with pytest.raises(UserError, match=r"other settings; give another folder: seed was 1, and is now 2$"):
        open_folder(tmp_path / "new" / "out", {**settings, "seed": 2})
    (tmp_path / "new" / "out" / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings.json is not JSON"):
        open_folder(tmp_path / "new" / "out", settings)
    for contents in ("[]", "3", "null", "[" * 100_000, '{"seed": 1, "seed": 1}'):
        (tmp_path / "new" / "out" / "settings.json").write_text(contents)
        with pytest.raises(UserError, match=r"settings.json .*give a new folder"):
            open_folder(tmp_path / "new" / "out", settings)


@pytest.mark.parametrize("name", ["log.jsonl", "settings.json"])
def test_a_fifo_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    opening = {
        "settings.json": lambda: open_folder(tmp_path, {}),
        "log.jsonl": lambda: CompletionLog(tmp_path / "log.jsonl", fields=FIELDS),
    }
    with pytest.raises(UserError, match=r"not a file"):
        opening[name]()
