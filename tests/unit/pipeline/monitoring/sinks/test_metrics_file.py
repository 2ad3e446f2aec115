"""metrics.jsonl: a resume repeats no step in it, and damaged lines are skipped."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.monitoring.sinks.metrics_file import MetricsFile, has_validation
from tests.helpers.full_disk import file_size_limit
from tests.helpers.monitored import jsonl


def test_metrics_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(tmp_path, resumed_step=0)
    for step in (1, 2, 3, 4):
        first.write(step, {"loss/total": 10.0 * step, "progress/tokens": 512.0 * step})
    first.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 2, "loss/to')  # a kill within a line
    resumed = MetricsFile(tmp_path, resumed_step=2)
    resumed.write(3, {"loss/total": 33.0, "optim/grad_norm": math.nan})  # JSON has no NaN
    resumed.close()
    assert jsonl(path) == [
        {"step": 1, "tokens": 512, "loss/total": 10.0, "progress/tokens": 512.0},
        {"step": 2, "tokens": 1024, "loss/total": 20.0, "progress/tokens": 1024.0},
        {"step": 3, "loss/total": 33.0, "optim/grad_norm": None},
    ]


def test_metrics_are_on_disk_after_each_step(tmp_path: Path) -> None:
    sink = MetricsFile(tmp_path, resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    assert len(jsonl(tmp_path / "metrics.jsonl")) == 1
    sink.close()


def test_metrics_show_whether_a_step_was_validated(tmp_path: Path) -> None:
    assert not has_validation(tmp_path, step=1)  # no file yet
    sink = MetricsFile(tmp_path, resumed_step=0)
    sink.write(1, {"loss/total": 1.0, "loss/head_1": 1.0})
    sink.write(1, {"val/loss_head_1": 1.0})
    sink.write(2, {"loss/total": 1.0, "loss/head_1": 1.0})
    sink.close()
    assert [has_validation(tmp_path, step=step) for step in (1, 2, 3)] == [True, False, False]


def test_damaged_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\0\0\0\n\xff\n[]\n{}\n{"step": "x"}\n{"step": 2}\n{"step": 3')
    assert not has_validation(tmp_path, step=2)
    MetricsFile(tmp_path, resumed_step=2).close()
    assert jsonl(path) == [{"step": 1}, {"step": 2}]


def test_a_new_run_drops_old_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n', encoding="utf-8")
    MetricsFile(tmp_path, resumed_step=0).close()
    assert jsonl(path) == []


def link_to_zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, link_to_zeros])
def test_what_is_no_file_is_left_alone_and_lines_wait_until_it_is_gone(
    make: Callable[[Path], None], tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    make(path)
    sink = MetricsFile(tmp_path, resumed_step=3)
    assert not has_validation(tmp_path, step=3)
    sink.write(4, {"loss/total": 4.0})
    sink.write(5, {"loss/total": 5.0})
    assert not path.is_file()
    path.rename(tmp_path / "elsewhere")
    sink.write(6, {"loss/total": 6.0})
    sink.close()
    assert [line["step"] for line in jsonl(path)] == [4, 5, 6]
    warnings = [record.getMessage() for record in pipeline_log.records]
    assert len(warnings) == 2
    assert "metrics.jsonl cannot be written after step 3: " in warnings[0]
    assert warnings[1] == "metrics.jsonl is written again after step 6; nothing is missing"


def test_a_disk_that_is_full_at_a_resume_loses_no_line(tmp_path: Path, pipeline_log: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)), encoding="utf-8")
    with file_size_limit(4):
        sink = MetricsFile(tmp_path, resumed_step=2)
        sink.write(3, {"loss/total": 33.0})
        assert [line["step"] for line in jsonl(path)] == [1, 2, 3]
    sink.write(4, {"loss/total": 44.0})
    sink.close()
    assert jsonl(path) == [{"step": 1}, {"step": 2}, {"step": 3, "loss/total": 33.0}, {"step": 4, "loss/total": 44.0}]
    assert list(tmp_path.iterdir()) == [path]


def test_lines_that_are_refused_to_the_end_are_counted_as_missing(
    tmp_path: Path, pipeline_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    sink = MetricsFile(tmp_path, resumed_step=0)
    sink.write(1, {"loss/total": 1.0})
    sink.close()
    assert "metrics.jsonl lacks what was reported after step 0; it could not be written: " in pipeline_log.text
