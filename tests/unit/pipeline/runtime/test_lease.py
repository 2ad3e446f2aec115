"""The lease on a run directory, between processes that do not know of each other."""

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from common.files import hold_lock
from pipeline.runtime.lease import Lease, Lost
from pipeline.runtime.world import Launch
from tests.conftest import REPOSITORY

FIRST, SECOND, OTHER = Launch(job="7"), Launch(job="7", restart=1), Launch(job="8")


def enter(run_dir: Path, launch: Launch) -> Lease:
    lease = Lease(run_dir, launch=launch)
    lease.acquire()
    return lease


def test_the_last_start_to_take_the_lease_holds_it(tmp_path: Path) -> None:
    first, second = Lease(tmp_path, launch=FIRST), Lease(tmp_path, launch=SECOND)
    assert (first.holder, first.is_taken_over) == (None, False)
    first.take()
    assert (first.is_taken_over, second.is_taken_over, second.holder) == (False, True, FIRST)
    second.take()
    assert (first.is_taken_over, second.is_taken_over) == (True, False)
    with pytest.raises(Lost, match="7, start 2 has taken the run over"):
        first.check()
    second.check()


def test_starts_with_the_same_name_have_different_leases(tmp_path: Path) -> None:
    """Process ids are used again."""
    first, again = (Lease(tmp_path, launch=FIRST) for _ in range(2))
    first.take()
    assert again.is_taken_over


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"job": "7"', '{"job": "7"}'])
def test_a_damaged_lease_is_taken_from_nobody(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease.json").write_text(text)
    lease = Lease(tmp_path, launch=FIRST)
    assert (lease.holder, lease.is_taken_over) == (None, False)
    lease.check()


@pytest.mark.parametrize("restart", ["null", '"1"', "[1]", "1.5"])
def test_a_holder_that_is_none_keeps_nobody_out(tmp_path: Path, restart: str) -> None:
    (tmp_path / "lease.json").write_text(f'{{"job": "{FIRST.job}", "restart": {restart}, "token": "0a"}}')
    assert Lease(tmp_path, launch=FIRST).holder is None
    lease = Lease(tmp_path, launch=Launch(job=FIRST.job, restart=FIRST.restart + 1))
    lease.acquire()
    assert not lease.is_taken_over


def test_a_lease_that_cannot_be_read_for_a_moment_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system answers with ESTALE at one look, and with the file at the next."""
    lease = Lease(tmp_path, launch=FIRST)
    lease.take()
    failures = fail_to_open(monkeypatch, times=1)
    assert not lease.is_taken_over
    assert lease.holder == FIRST
    assert failures == ["lease.json"]
    fail_to_open(monkeypatch, times=2)
    monkeypatch.setattr("pipeline.runtime.lease.time.sleep", lambda _: None)
    lease.check()
    Lease(tmp_path, launch=SECOND).take()
    fail_to_open(monkeypatch, times=2)
    with pytest.raises(Lost, match="7, start 2 has taken the run over"):
        lease.check()


def test_a_lease_that_stays_unreadable_is_no_takeover(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A save fails then, because another start may own the run; training goes on; a new start is refused."""
    lease = Lease(tmp_path, launch=FIRST)
    lease.take()
    monkeypatch.setattr("pipeline.runtime.lease.time.sleep", lambda _: None)
    fail_to_open(monkeypatch, times=100)
    assert not lease.is_taken_over
    with pytest.raises(OSError, match="Stale file handle") as caught:
        lease.check()
    assert not isinstance(caught.value, Lost)
    with pytest.raises(UserError, match=r"lease\.json cannot be read: Stale file handle"):
        enter(tmp_path, SECOND)


def fail_to_open(monkeypatch: pytest.MonkeyPatch, *, times: int) -> list[str]:
    """Let the next `times` opens of a lease fail with ESTALE; return the names of the files, as they fail."""
    real_open = os.open
    failed: list[str] = []

    def stale_open(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == "lease.json" and len(failed) < times:
            failed.append(Path(path).name)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr("common.small_files.os.open", stale_open)
    return failed


HOLDER = """
import os, sys, time
from pathlib import Path
from common.files import hold_lock
from pipeline.runtime.lease import Lease
from pipeline.runtime.world import Launch
folder = Path(sys.argv[1])
hold_lock(folder / ".lock")
lease = Lease(folder, launch=Launch(job="7"))
lease.take()
print("holding", flush=True)
while not lease.is_taken_over or sys.argv[2] == "deaf":
    time.sleep(0.01)
"""


def holder_in(run_dir: Path, how: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run_dir), how], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "holding\n"
    return process


def test_a_later_start_of_the_same_job_waits_for_the_earlier_one_to_end(tmp_path: Path) -> None:
    with holder_in(tmp_path, "listening") as earlier:
        lease = enter(tmp_path, SECOND)
        assert earlier.wait() == 0
    assert not lease.is_taken_over
    with pytest.raises(UserError, match="has been taken over by 7, start 2"):
        enter(tmp_path, FIRST)
    assert not lease.is_taken_over


def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.runtime.lease.GRACE_S", 0.0)
    with holder_in(tmp_path, "deaf") as earlier:
        assert enter(tmp_path, SECOND).is_taken_over is False
        assert hold_lock(tmp_path / ".lock") is not None
        earlier.kill()


@pytest.mark.parametrize("launch", [FIRST, OTHER, Launch(job="8", restart=3)])
def test_any_other_start_is_refused_while_one_runs(tmp_path: Path, launch: Launch) -> None:
    with holder_in(tmp_path, "listening") as living:
        with pytest.raises(UserError, match=f"is in use by process {living.pid}"):
            enter(tmp_path, launch)
        assert Lease(tmp_path, launch=launch).holder == FIRST
        assert living.poll() is None
        living.kill()
    assert enter(tmp_path, launch).is_taken_over is False
