"""Programs that behave badly, and helpers of the sandbox tests to run and watch them."""

import time
from collections.abc import Callable

import psutil
import pytest

from common.command_line import UserError
from pipeline.inference.evaluation.sandbox import Isolation, Limits, ProgramResult, find_isolation, run_program

SLEEPER = "import os, sys\nARGUMENTS = [sys.executable, '-S', '-c', 'import time; time.sleep(600)', {token!r}]\n"
DAEMON = (
    SLEEPER
    + """
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv(ARGUMENTS[0], ARGUMENTS)
    os._exit(0)
os.close(write)
assert os.read(read, 1) == b""  # the exec closes it
"""
)
FORK_BOMB = (
    SLEEPER
    + """
count = 0
try:
    while True:
        if os.fork() == 0:
            os.execv(ARGUMENTS[0], ARGUMENTS)
        count += 1
except OSError:
    pass
"""
)
WRITE_EVERYWHERE = """
import os
for descriptor in range(3, 1 << 14):
    try:
        os.write(descriptor, {contents})
    except OSError:
        pass
"""
FORK_FOREVER = "import os\nwhile True:\n    try:\n        os.fork()\n    except OSError: pass"
IGNORE_ALL = "import time\nwhile True:\n    try:\n        time.sleep(60)\n    except BaseException: pass"


def namespaces_are_missing() -> str:
    """Return why this machine cannot isolate programs, or an empty string if it can."""
    try:
        find_isolation(allow_weak=False)
    except UserError as error:
        return str(error)
    return ""


needs_namespaces = pytest.mark.skipif(bool(missing := namespaces_are_missing()), reason=missing)


def run(program: str, checks: str = "", *, timeout_s: float = 30, **limits: int) -> ProgramResult:
    return run_program(program, checks, isolation=Isolation.FULL, limits=Limits(timeout_s=timeout_s, **limits))


def assert_passes(program: str, checks: str = "", **limits: int) -> None:
    assert run(program, checks, **limits) == ProgramResult(outcome="passed")


def alive(token: str) -> list[int]:
    """Return the ids of the processes with this word on their command line."""
    return [process.pid for process in psutil.process_iter(["cmdline"]) if token in (process.info["cmdline"] or [])]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
