"""Names of shared memory: runs that start at the same time, and runs that were killed."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.data import shared_memory
from pipeline.data.dataset import ShardFolder
from tests.conftest import REPOSITORY

RUN = """
import os, sys
from pathlib import Path
from pipeline.data.dataset import ShardFolder
folder = ShardFolder(Path(sys.argv[1]), batch_size=1)
if sys.argv[2] == "fork" and not os.fork():
    sys.stdin.read()
    os._exit(0)
print(folder._shm_prefix_int, flush=True)
sys.stdin.read()
"""


def run(folder: Path, how: str = "") -> tuple[subprocess.Popen[str], int]:
    """Start a process that opens a dataset; return it, and the number of its name."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), how], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def files_of(number: int) -> list[Path]:
    places = (shared_memory.SHARED_MEMORY, shared_memory.TEMPORARY)
    return [path for place in places for path in place.glob(f"{number:06}_*")]


@contextmanager
def no_other_start() -> Iterator[IO[str]]:
    """Keep every start on this machine from choosing and freeing names."""
    with (shared_memory.SHARED_MEMORY / shared_memory.STARTING).open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield held


def test_names_of_killed_runs_are_freed_and_those_of_live_runs_kept(byte_shards: Path) -> None:
    live, live_number = run(byte_shards / "train")
    killed, killed_number = run(byte_shards / "train")
    left, kept = files_of(killed_number), files_of(live_number)
    assert left
    with no_other_start():  # another start would free the names, and then use them
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        assert files_of(killed_number) == left, "nothing was left to be removed"
        shared_memory.free_names_of_dead_runs()
        assert not files_of(killed_number)
    assert kept
    assert all(path.exists() for path in kept)
    os.killpg(live.pid, signal.SIGKILL)
    live.wait()


def test_a_worker_that_outlives_its_run_keeps_the_name(byte_shards: Path) -> None:
    process, number = run(byte_shards / "train", "fork")
    process.kill()
    process.wait()
    shared_memory.free_names_of_dead_runs()
    assert files_of(number)
    os.killpg(process.pid, signal.SIGKILL)  # the worker


def test_runs_that_start_together_choose_names_in_turn(byte_shards: Path) -> None:
    with no_other_start() as held:
        start = threading.Thread(target=ShardFolder, args=[byte_shards / "train"], kwargs={"batch_size": 1})
        start.start()
        start.join(0.5)
        assert start.is_alive()
        fcntl.flock(held, fcntl.LOCK_UN)
        start.join(300)
        assert not start.is_alive()
