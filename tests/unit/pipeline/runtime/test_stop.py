"""Stop requests, with real signals sent to this process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from pipeline.runtime.stop import ExitCode, StopRequest
from tests.conftest import REPOSITORY, is_alive

STOPPING = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    """A request in this process, which keeps its own way with Ctrl-C."""
    before = {number: signal.getsignal(number) for number in (*STOPPING, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield StopRequest(has_launcher=False)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: signal.Signals) -> None:
    """Signal this process. The handler has run on return, because the main thread signals itself."""
    os.kill(os.getpid(), number)


def test_there_is_no_request_at_first(stop: StopRequest) -> None:
    assert stop.reason is None


@pytest.mark.parametrize("number", STOPPING)
def test_a_signal_requests_a_stop(stop: StopRequest, number: signal.Signals) -> None:
    send(number)
    assert stop.reason == number.name


def test_later_signals_change_nothing(stop: StopRequest) -> None:
    for number in (*STOPPING, *STOPPING):
        send(number)
        assert stop.reason == "SIGTERM"


INTERRUPTED = """
import os, signal, sys, time
from pipeline.runtime.stop import StopRequest
signal.signal(signal.SIGINT, signal.default_int_handler)
stop = StopRequest(has_launcher=False)
os.kill(os.getpid(), signal.SIGINT)
while stop.reason is None:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGTERM)
print(stop.reason, flush=True)
os.kill(os.getpid(), signal.SIGINT)
HERE
"""


@pytest.mark.parametrize("where", ["time.sleep(600)", "import ctypes; ctypes.CDLL(None).sleep(600)"])
def test_the_first_interrupt_requests_a_stop_and_the_second_ends_the_process(where: str) -> None:
    """Also inside of a C call that never returns, as a collective may be."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.replace("HERE", where)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("SIGINT\n", 130)
    first, second = done.stderr.strip().split("\n\n")
    assert first.startswith("stopping: the run saves after this step; Ctrl-C again ends it at once")
    assert second == "ended at once by Ctrl-C: the same command goes on from the newest checkpoint"


IGNORING = """
import os, signal
from pipeline.runtime.stop import StopRequest
signal.signal(signal.SIGINT, signal.SIG_IGN)
stop = StopRequest(has_launcher=False)
for _ in range(2):
    os.kill(os.getpid(), signal.SIGINT)
print(stop.reason)
"""


def test_an_ignored_interrupt_stays_ignored() -> None:
    """A shell starts background jobs so that Ctrl-C, which is meant for another job, does not reach them."""
    done = subprocess.run([sys.executable, "-c", IGNORING], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")


# A rank with two loader workers, each of which has reported its number when the rank prints it.
LOADING = """
import functools, multiprocessing, os, signal, sys, time
from pipeline.runtime.stop import StopRequest, end_with_parent_only

def work(started):
    end_with_parent_only(0, parent=rank)
    started.put(os.getpid())
    time.sleep(600)

rank = os.getpid()
stop = StopRequest(has_launcher=False)
started = multiprocessing.Queue()
workers = [multiprocessing.Process(target=work, args=[started]) for _ in range(2)]
for worker in workers:
    worker.start()
print(*(started.get() for _ in workers), flush=True)
sys.stdin.readline()
for worker in workers:
    worker.terminate()
    worker.join()
print(stop.reason, *(worker.exitcode for worker in workers), flush=True)
"""


def rank_with_loader_workers() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    rank = subprocess.Popen(
        [sys.executable, "-c", LOADING],
        cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    assert rank.stdout is not None
    return rank, [psutil.Process(int(pid)) for pid in rank.stdout.readline().split()]


def test_loader_workers_end_at_no_request_but_their_own_ranks() -> None:
    rank, workers = rank_with_loader_workers()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(rank.pid, number)
    time.sleep(0.5)  # time for the workers to end, if they do
    assert all(map(is_alive, workers))
    assert rank.communicate("\n", timeout=60)[0] in ("SIGINT 0 0\n", "SIGTERM 0 0\n")


def test_loader_workers_end_with_a_rank_that_is_killed() -> None:
    rank, workers = rank_with_loader_workers()
    rank.kill()
    rank.communicate()
    assert psutil.wait_procs(workers, timeout=60)[1] == []


ORPHAN = """
import os, time
from pipeline.runtime.stop import StopRequest
alone, watched = StopRequest(has_launcher=False), StopRequest(has_launcher=True)
parent = os.getppid()
print(watched.reason, flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
print(alone.reason, watched.reason, flush=True)
"""


def test_the_death_of_the_launcher_requests_a_stop() -> None:
    launcher = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ORPHAN!r}]); sys.stdin.read(1)"
    with subprocess.Popen(
        [sys.executable, "-c", launcher], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "None\n"
        process.kill()
        assert process.stdout.readline() == "None its launcher's death\n"


BLOCKED = """
import signal, time
from pipeline.runtime.stop import StopRequest
print("started", flush=True)
while signal.SIGUSR1 not in signal.sigpending():
    time.sleep(0.01)
print(StopRequest(has_launcher=False).reason, flush=True)
"""


def test_a_signal_held_back_by_the_launcher_is_a_request() -> None:
    """slurm/launch.sh blocks signals while Python starts."""
    command = ["env", "--block-signal=USR1", sys.executable, "-c", BLOCKED]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGUSR1)
        assert process.stdout.readline() == "SIGUSR1\n"


ENDING = """
import os, signal, sys
from pipeline.runtime.stop import StopRequest

class Late:
    def __del__(self):  # after Python has removed its handlers
        for number in (signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)

late = Late()
stop = StopRequest(has_launcher=False)
stop.close()
sys.exit(75)
"""


def test_a_signal_while_the_interpreter_ends_does_not_change_the_exit_code() -> None:
    done = subprocess.run([sys.executable, "-c", ENDING], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, "")


def test_the_exit_codes_are_those_of_sysexits() -> None:
    assert (ExitCode.STOPPED, ExitCode.FAILED_SAVE) == (os.EX_TEMPFAIL, os.EX_IOERR)
    assert ExitCode.TAKEN_OVER == os.EX_NOPERM
    assert (ExitCode.BAD_NUMBERS, ExitCode.HUNG) == (os.EX_DATAERR, os.EX_PROTOCOL)


SHARING = """
import os, signal, time
from multiprocessing.shared_memory import SharedMemory
from pipeline.runtime.stop import StopRequest
stop = StopRequest(has_launcher=False)
memory = SharedMemory(create=True, size=1)
os.killpg(0, signal.SIGUSR1)
while stop.reason is None:
    time.sleep(0.01)
time.sleep(0.5)  # time for the tracker to die, if it does
memory.unlink()
"""


def test_a_signal_to_all_processes_of_a_job_leaves_its_shared_memory_tracked() -> None:
    """As Slurm signals. multiprocessing.resource_tracker is a process of its own, which Python starts when needed."""
    done = subprocess.run(
        [sys.executable, "-c", SHARING], cwd=REPOSITORY, capture_output=True, text=True, check=False,
        start_new_session=True,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
