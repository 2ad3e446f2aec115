"""Results of the sandbox: programs that pass, fail, cheat, crash, or exceed their limits."""

import platform
import signal
import threading
from pathlib import Path

import numpy
import psutil
import pytest

from pipeline.inference.evaluation.sandbox import (
    Isolation,
    Limits,
    ProgramResult,
    SandboxError,
    run_program,
    weaknesses,
)
from tests.conftest import is_alive
from tests.helpers.hostile import (
    FORK_FOREVER,
    IGNORE_ALL,
    WRITE_EVERYWHERE,
    assert_passes,
    needs_namespaces,
    run,
    wait_until,
)

pytestmark = needs_namespaces


def test_right_programs_pass() -> None:
    assert_passes("def f(x):\n    return x + 1\n", "assert f(1) == 2")
    assert_passes("import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int' = 3\n", "assert A().x == 3")
    assert_passes("import pickle\nclass A:\n    pass\n", "assert type(pickle.loads(pickle.dumps(A()))) is A")
    assert_passes("import numbers, decimal, hashlib, json, re, heapq, bisect, statistics, random, string, threading")
    assert_passes("open('mine', 'w').write('é')", "assert open('mine', encoding='utf-8').read() == 'é'")
    assert_passes(
        "import sys\nsys.setrecursionlimit(5000)\ndef f(n):\n    return n and f(n - 1)", "assert f(4000) == 0"
    )
    assert_passes("for _ in range(100):\n    print('x' * 1_000_000)")


@pytest.mark.parametrize(
    ("program", "checks", "detail"),
    [
        ("def f(x):\n    return x", "assert f(1) == 2, 'got 1'", "AssertionError: got 1"),
        ("def f(x):\n    return x", "assert f(1) == 2", "AssertionError"),
        ("def f(x:\n", "", "SyntaxError: "),
        ("x = '''", "assert False\n'''", "SyntaxError: "),
        ("x = 1\0", "", "SyntaxError: source code string cannot contain null bytes"),
        ("x = '\ud800'", "", "UnicodeEncodeError: "),
        ("f()", "", "NameError: name 'f' is not defined"),
        ("input()", "", "EOFError: "),
        ("def f():\n    return f()", "f()", "RecursionError: "),
        ("class E(Exception):\n    def __str__(self):\n        return 'a\\nb' * 9999", "raise E", "E: a ba ba"),
        ("open('big', 'wb').write(bytes(100 << 20))", "", "OSError: "),
    ],
)
def test_wrong_programs_fail_with_what_they_raised(program: str, checks: str, detail: str) -> None:
    result = run(program, checks)
    assert result.outcome == "failed"
    assert result.detail.startswith(detail)
    assert len(result.detail) <= 300


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.fork() or os._exit(0); os._exit(0)",
        "import os; os.kill(os.getpid(), 9)",
        WRITE_EVERYWHERE.format(contents="b'passed'") + "os._exit(0)",
        WRITE_EVERYWHERE.format(contents="bytes(10**7)"),
        "import os\nos.closerange(0, 1 << 16)",
        "import threading, os\nthreading.Timer(0.01, os._exit, [0]).start()\nwhile True: pass",
    ],
)
def test_ending_before_the_checks_is_a_failure(program: str) -> None:
    assert run(program, timeout_s=3).outcome != "passed"


def test_a_program_that_breaks_its_interpreter_can_pass() -> None:
    assert_passes("import os, sys\nos.read = os.write = os._exit = sys.exit = print = None\nsys.modules.clear()")


@pytest.mark.parametrize(
    "program", ["while True:\n    pass", IGNORE_ALL, "while True:\n    print('x' * 1_000_000)", FORK_FOREVER]
)
def test_time_is_limited(program: str) -> None:
    assert run(program, timeout_s=1) == ProgramResult(outcome="timed out")


@pytest.mark.parametrize(
    ("program", "name"), [("import os; os.abort()", "SIGABRT"), ("import ctypes; ctypes.string_at(0)", "SIGSEGV")]
)
def test_a_crash_is_reported(program: str, name: str) -> None:
    assert run(program) == ProgramResult(outcome="killed", detail=name)


def test_what_this_machine_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert weaknesses() == []
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "children")
    no_filter, not_counted = weaknesses()
    assert "no filter of system calls for riscv64" in no_filter
    assert "cannot be counted, so each process may take the whole limit" in not_counted


@pytest.mark.parametrize(
    "program", ["x = bytearray(2 << 30)", "x = [0]\nwhile True:\n    x += x", "x = 'x' * (1 << 33)"]
)
def test_memory_is_limited(program: str) -> None:
    assert run(program).outcome == "out of memory"


def test_results_do_not_depend_on_the_hash_seed() -> None:
    first, second = (run("raise ValueError(hash('a'), list({'a', 'b', 'c', 'd'}))") for _ in range(2))
    assert first == second


@pytest.mark.parametrize("generation", ["supervisor", "init"])
def test_a_broken_sandbox_is_an_error_and_not_a_result(generation: str) -> None:
    told: list[SandboxError] = []

    def run_until_killed() -> None:
        try:
            run("import time\ntime.sleep(600)", timeout_s=600)
        except SandboxError as error:
            told.append(error)

    runner = threading.Thread(target=run_until_killed)
    runner.start()
    wait_until(lambda: any(process.children(recursive=True)[1:] for process in supervisors()))
    (supervisor,) = supervisors()
    (supervisor if generation == "supervisor" else supervisor.children()[0]).send_signal(signal.SIGKILL)
    runner.join()
    assert generation in str(told[0])


def supervisors() -> list[psutil.Process]:
    children = filter(is_alive, psutil.Process().children())  # a child that has ended has no command line
    return [child for child in children if any("sandbox_init.py" in part for part in child.cmdline())]


def test_only_the_packages_that_are_asked_for_can_be_imported() -> None:
    limits, numpy_folder = Limits(timeout_s=60), Path(numpy.__file__).parent
    checks = "import numpy as np\nassert np.linalg.norm([3, 4]) == 5"
    assert run_program("", checks, isolation=Isolation.FULL, limits=limits, packages=[numpy_folder]) == ProgramResult(
        outcome="passed"
    )
    assert run("", checks).detail == "ModuleNotFoundError: No module named 'numpy'"
    torch = run_program("import torch", "", isolation=Isolation.FULL, limits=limits, packages=[numpy_folder])
    assert torch.detail == "ModuleNotFoundError: No module named 'torch'"


def test_programs_may_print_anything_and_have_no_interactive_helpers() -> None:
    assert_passes("print('\\ud800')\nimport sys\nprint('\\ud800', file=sys.stderr)")
    assert_passes("", "assert exit is quit is help is None")
    assert run("exit()").detail == "TypeError: 'NoneType' object is not callable"
