"""Joining and leaving the process group, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, free_port

SCRIPT = """
import faulthandler, sys, time
from contextlib import suppress
from pathlib import Path
from common.endings import exit_on_user_error
from common.command_line import UserError
from pipeline.runtime.collectives import from_main
from pipeline.runtime.world import world_from_environment
from pipeline.training.process_group import process_group

faulthandler.dump_traceback_later(250, exit=True)  # prints where a hang is

def gloo_threads():
    names = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread may have ended
            names.append((task / "comm").read_text())
    return [name for name in names if "gloo" in name]

def left_threads():
    end_s = time.monotonic() + 60  # the kernel still lists a thread for a moment after it was joined
    while gloo_threads() and time.monotonic() < end_s:
        time.sleep(0.01)
    return gloo_threads()

def main():
    with process_group(world_from_environment()) as device:
        print(device, from_main("together"), len(gloo_threads()) > 0)
        if sys.argv[1] == "mistake":
            raise UserError("no such thing")

try:
    exit_on_user_error(main, program="test")
finally:
    print("left", len(left_threads()))
"""


@pytest.mark.parametrize(("end", "returncode"), [("mistake", 2), ("end", 0)])
def test_no_thread_of_the_process_group_outlives_it(end: str, returncode: int, tmp_path: Path) -> None:
    """Such a thread can abort the interpreter's shutdown, and the exit code is lost. And joining compiles nothing."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, end], env={**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == returncode, done.stderr
    assert done.stdout.splitlines()[-2:] == ["cpu together True", "left 0"]
    assert not list(tmp_path.iterdir())


THREADS = """
import os, torch
from pipeline.runtime.world import world_from_environment
from pipeline.training.process_group import process_group
with process_group(world_from_environment()):
    print(torch.get_num_threads(), len(os.sched_getaffinity(0)))
"""


@pytest.mark.parametrize("given", [None, "2"])
def test_the_ranks_of_a_node_share_its_cores_unless_told_otherwise(given: str | None) -> None:
    port, given_threads = str(free_port()), {} if given is None else {"OMP_NUM_THREADS": given}
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given_threads
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", THREADS], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                 "MASTER_PORT": port},
        )
        for rank in range(2)
    ]  # fmt: skip
    for rank in ranks:
        threads, cores = map(int, rank.communicate(timeout=300)[0].split()[-2:])
        assert threads == int(given or max(1, cores // 2))
