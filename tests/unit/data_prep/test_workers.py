"""Pools of workers: results, progress, and failures."""

import errno
import os
import re
import signal

import pytest

from common.command_line import UserError
from data_prep.workers import count_progress, results_of, worker_pool


def _double(number: int) -> int:
    count_progress(documents=1, input_bytes=10, tokens=number)
    return 2 * number


def _be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(code: int) -> None:
    raise OSError(code, os.strerror(code))


def test_results_come_in_order_and_progress_adds_up() -> None:
    with worker_pool(2) as (pool, progress):
        futures = [pool.submit(_double, number) for number in range(8)]
        assert results_of(futures, progress, input_bytes=80, verb="doubling") == [0, 2, 4, 6, 8, 10, 12, 14]
        assert progress.read() == (8, 80, 28)


def test_the_bar_counts_parts_if_the_number_of_bytes_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    """So the bar has an end; the speed of reading is shown beside it."""
    with worker_pool(2) as (pool, progress):
        results_of([pool.submit(_double, 1) for _ in range(8)], progress, input_bytes=None, verb="doubling")
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r"100%.* 8/8 .*part/s, 8 documents, 0\.0M tokens, 0\.0 MB/s", last), last


def test_a_killed_worker_and_a_full_disk_are_reported_in_words() -> None:
    def wait_for_death() -> None:
        with worker_pool(1) as (pool, progress):
            results_of([pool.submit(_be_killed)], progress, input_bytes=None, verb="x")

    def fail_with(code: int) -> None:
        with worker_pool(1) as (pool, progress):
            results_of([pool.submit(_fail, code)], progress, input_bytes=None, verb="x")

    with pytest.raises(UserError, match=r"a worker process was killed.* fewer --num_workers"):
        wait_for_death()
    with pytest.raises(UserError, match="cannot write: No space left on device; make room"):
        fail_with(errno.ENOSPC)
    with pytest.raises(OSError, match="Input/output error"):  # not a user's mistake
        fail_with(errno.EIO)
