"""The console: a progress bar on a terminal, and one line per report everywhere."""

import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from pipeline.monitoring.sinks.console import Console
from tests.conftest import REPOSITORY
from tests.helpers.monitored import Clock

BAR = """
import logging
from pipeline.runtime.logs import configure_logging
from pipeline.runtime.world import World
from pipeline.monitoring.sinks.console import Console, console_handler
configure_logging(World(rank=0, local_rank=0, world_size=1, local_world_size=1), handlers=[console_handler()])
console = Console(total_steps=4, resumed_step=0)
for step in (1, 2, 3):
    console.write(step, {"val/loss_head_1": float(step)})
console.close()
"""


def test_a_terminal_shows_a_progress_bar_and_a_log_file_only_lines(tmp_path: Path) -> None:
    lines = [f"step {step}/4  validation loss per head [{step}.000]" for step in (1, 2, 3)]
    command = [sys.executable, "-c", BAR]
    with (tmp_path / "log").open("w") as log:
        assert subprocess.run(command, cwd=REPOSITORY, stdout=log, check=False).returncode == 0
    assert (tmp_path / "log").read_text().splitlines() == lines
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # a terminal ends with this when its last writer is gone
            while part := os.read(ours, 4096):
                shown += part
    os.close(ours)
    text = shown.decode()
    assert "1/4 [" in text and "%|" in text  # noqa: PT018
    assert [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ")] == lines


def test_the_console_line(clock: Clock, pipeline_log: pytest.LogCaptureFixture) -> None:
    console = Console(total_steps=4000, resumed_step=1000)
    clock.now_s += 20
    scalars = {
        "loss/total": 5.5, "loss/head_1": 2.0, "loss/head_2": 3.5, "optim/lr": 3e-4, "optim/grad_norm": 0.756,
        "throughput/tokens_per_s": 12_345.6, "memory/peak_GiB": 1.26, "data/wait_s": 0.034,
        "progress/tokens": 1_234_567_890.0,
    }  # fmt: skip
    console.write(1010, scalars)
    console.write(1010, {**scalars, "throughput/mfu": 0.4567})
    console.write(1010, {"val/loss_head_1": 1.2345, "val/loss_head_2": 2.5})
    amounts = {4096: "4.10k", 250_000: "250.00k", 1_024_000: "1.02M", 200.01e9: "200.01B", 1e12: "1.00T"}
    for amount in amounts:
        console.write(1010, {**scalars, "progress/tokens": amount})
    console.close()
    plain, with_mfu, validation, *others = (record.getMessage() for record in pipeline_log.records)
    assert [line.split("  ")[1] for line in others] == [f"tokens {short}" for short in amounts.values()]
    assert plain == (
        "step 1010/4000  tokens 1.23B  loss 5.500 [2.000 3.500]  lr 3.0e-04  grad 0.76  12,346 tok/s"
        "  mem 1.3 GiB  wait 0.03s  ETA 1:39:40"  # 2 s per step since the resume, 2,990 steps left
    )
    assert with_mfu == plain.replace("tok/s", "tok/s  MFU 45.7%")
    assert validation == "step 1010/4000  validation loss per head [1.234 2.500]"


LOSING = """
import os, sys
from pathlib import Path
from pipeline.monitoring.sinks.console import Console, console_handler
from pipeline.runtime.logs import configure_logging, log_file_handler
from pipeline.runtime.world import World
world = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
configure_logging(world, handlers=[console_handler(), log_file_handler(Path(sys.argv[1]))])
console = Console(total_steps=4, resumed_step=0)
for step in (1, 2, 3):
    console.write(step, {"val/loss_head_1": float(step)})
console.close()
os._exit(7)  # how a command ends without stdout is no matter of the console
"""


def closed_pipe() -> int:
    """Return the writing end of a pipe that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def full_disk() -> int:
    return os.open("/dev/full", os.O_WRONLY)


def terminal_that_is_gone() -> int:
    ours, theirs = pty.openpty()
    os.close(ours)
    return theirs


@pytest.mark.parametrize("stdout", [closed_pipe, full_disk, terminal_that_is_gone])
def test_a_run_goes_on_when_nobody_can_read_its_lines(stdout: Callable[[], int], tmp_path: Path) -> None:
    descriptor = stdout()
    command = [sys.executable, "-c", LOSING, str(tmp_path / "train.log")]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=descriptor, stderr=subprocess.PIPE, check=False)
    os.close(descriptor)
    assert (done.returncode, done.stderr) == (7, b"")
    assert len((tmp_path / "train.log").read_text().splitlines()) == 3
