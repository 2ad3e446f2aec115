"""Stop requests, with real signals sent to this process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline.runtime.stop import ExitCode, StopRequest
from tests.conftest import REPOSITORY

STOPPING = (signal.SIGTERM, signal.SIGUSR1)
INTERRUPT_HANDLER = signal.getsignal(signal.SIGINT)  # Python's own, or none if the tests run in the background


@pytest.fixture
def stop() -> Iterator[StopRequest]:
    before = {number: signal.getsignal(number) for number in STOPPING}
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


def test_an_interrupt_from_the_keyboard_is_not_caught(stop: StopRequest) -> None:
    assert signal.getsignal(signal.SIGINT) is INTERRUPT_HANDLER
    assert stop.reason is None


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
