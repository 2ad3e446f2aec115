"""The watchdog in processes that really hang: which it ends, which it does not, and the records they leave."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.runtime.stop import ExitCode
from pipeline.runtime.watchdog import SECOND_LINE, record_collectives
from tests.conftest import REPOSITORY, free_port

TIMEOUTS_S = {
    "hang": 1, "hang_without_disk": 1, "hang_with_the_interpreter": 1, "go_slowly": 5, "leave": 1,
    "go_on_at_the_last_moment": 10, "fork": 2,
}  # fmt: skip
CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
VARIABLES = (
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_FR_DUMP_TEMP_FILE",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
)


def start(way: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.hanging", way, *map(str, arguments)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start all processes that need no input, at the same time."""
    root = tmp_path_factory.mktemp("ways")
    started = {way: start(way, root / way / "hangs", timeout_s) for way, timeout_s in TIMEOUTS_S.items()}
    yield started
    for process in started.values():
        process.kill()


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A process that has ended: its exit code, its stderr, and the folder for its flight record."""

    code: int
    stderr: str
    directory: Path

    @property
    def record(self) -> Path:
        return self.directory / "rank_00003.txt"


@pytest.fixture
def ended(request: pytest.FixtureRequest, processes: dict[str, subprocess.Popen[str]]) -> Ended:
    """Wait for the process that a test is parametrized with."""
    process = processes[request.param]
    _, stderr = process.communicate(timeout=300)
    assert isinstance(process.args, list)
    return Ended(code=process.returncode, stderr=stderr, directory=Path(str(process.args[4])))


def of_way(way: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ended", [way], indirect=True)


@of_way("hang")
def test_a_hung_process_writes_a_record_and_exits(ended: Ended) -> None:
    record = ended.record.read_text()
    assert ended.code == ExitCode.HUNG
    assert re.fullmatch(
        rf"rank 3: no progress for \d+ s, since {CLOCK}: mark 59; stacks and collectives are in {ended.record}\n",
        ended.stderr,
    )
    assert re.fullmatch(rf"{CLOCK} rank 3: no progress for \d+ s, since {CLOCK}: mark 59", record.splitlines()[0])
    assert f"host {os.uname().nodename}, pid " in record
    marks = record.partition("\nProgress:\n")[2].partition("\n\n")[0].splitlines()
    assert [mark.partition(" mark ")[2] for mark in marks] == [str(number) for number in range(10, 60)]
    assert "\nThread MainThread:\n" in record
    assert "in hang\n    time.sleep(1000)" in record
    assert "\nThread bystander:\n" in record
    assert "\nThread watchdog:\n" not in record
    assert record.endswith("none recorded\n")
    assert [path.name for path in ended.directory.iterdir()] == ["rank_00003.txt"]


def test_both_ranks_of_a_missed_collective_write_a_record(tmp_path: Path) -> None:
    port = free_port()
    ranks = [start("miss_a_collective", tmp_path, 8, rank, port) for rank in range(2)]
    try:
        outputs = [process.communicate(timeout=300)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    records = [(tmp_path / f"rank_0000{rank}.txt").read_text() for rank in range(2)]
    collectives = [record.partition("\nCollectives ")[2].splitlines()[1:] for record in records]
    assert [process.returncode for process in ranks] == [ExitCode.HUNG] * 2, outputs
    assert "in miss_a_collective\n    dist.all_reduce(tensor)" in records[0]
    assert "in miss_a_collective\n    time.sleep(1000)" in records[1]
    assert all("step 12: forward and backward" in record.splitlines()[0] for record in records)
    assert [line.split(" 0 default_pg ")[1] for line in collectives[0]] == [
        "#1 gloo:all_reduce [[4, 3]] -> [[4, 3]]: done",
        "#2 gloo:barrier [] -> []: done",
        "#3 gloo:all_reduce [[4, 3]] -> [[4, 3]]: scheduled",
    ]
    assert [line.split()[-1] for line in collectives[1]] == ["done", "done"]


@of_way("hang_without_disk")
def test_a_process_whose_record_cannot_be_written_exits_too(ended: Ended) -> None:
    assert ended.code == ExitCode.HUNG
    assert f": starting; writing {ended.record} failed: FileExistsError" in ended.stderr


@of_way("hang_with_the_interpreter")
def test_a_call_that_holds_the_interpreters_lock_is_ended_too(ended: Ended) -> None:
    assert ended.code == 1
    assert ended.stderr.startswith("Timeout (0:00:02)!")
    assert "in hang_with_the_interpreter" in ended.stderr
    assert not ended.record.exists()


@of_way("go_slowly")
def test_a_slow_process_is_not_ended(ended: Ended) -> None:
    assert (ended.code, ended.stderr) == (0, "")
    assert not ended.record.exists()


@of_way("leave")
def test_a_process_that_has_left_the_context_is_not_ended(ended: Ended) -> None:
    assert (ended.code, ended.stderr) == (0, "")
    assert not ended.record.exists()


@of_way("go_on_at_the_last_moment")
def test_a_process_that_makes_progress_after_its_record_is_not_ended(ended: Ended) -> None:
    assert ended.code == 0
    assert "rank 3: no progress for " in ended.stderr


@of_way("fork")
def test_a_forked_child_is_not_watched_and_can_end(ended: Ended) -> None:
    assert ended.code == ExitCode.HUNG
    assert ended.stderr.startswith("rank 3: no progress for ")
    assert ended.stderr.count("\n") == 1
    assert "in hang\n" in ended.record.read_text()


def test_time_spent_stopped_does_not_count(tmp_path: Path) -> None:
    timeout_s = 8.0  # long enough that it does not matter exactly when this process wakes up
    with start("wait_for_a_line", tmp_path, timeout_s) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.SIGSTOP)
            time.sleep((1 + SECOND_LINE) / 2 * timeout_s)  # past the limit of the first line, but not of the second
            process.send_signal(signal.SIGCONT)
            time.sleep(timeout_s / 5)  # no progress yet
            assert process.poll() is None
            print("go on", file=process.stdin, flush=True)
            assert process.wait(300) == 0
            assert process.stderr.read() == ""
        finally:
            process.kill()


def test_torch_is_made_to_record_collectives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    record_collectives(tmp_path)
    assert {name: os.environ.get(name) for name in VARIABLES} == {
        "TORCH_FR_BUFFER_SIZE": "2000",
        "TORCH_NCCL_TRACE_BUFFER_SIZE": None,
        "TORCH_FR_DUMP_TEMP_FILE": f"{tmp_path}/nccl_rank_",
        "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": None,
        "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
    }


def test_variables_that_the_user_has_set_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    chosen = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7", "TORCH_FR_DUMP_TEMP_FILE": "x", "TORCH_NCCL_DUMP_ON_TIMEOUT": "0"}
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    record_collectives(tmp_path)
    assert {name: os.environ[name] for name in VARIABLES if name in os.environ} == chosen
