"""Every rank records its own warnings, and the traceback that ended it; only rank 0 also prints them."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

RANK = """
import logging, sys, threading, warnings
from pathlib import Path
from pipeline.runtime.logs import configure_logging, logger
from pipeline.runtime.world import World
from pipeline.runtime.logs import keep_rank_log
rank, directory, how = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
world = World(rank=rank, local_rank=rank, world_size=4, local_world_size=4)
configure_logging(world, handlers=[keep_rank_log(directory, world=world)])
logger.info("no news")
if how == "quiet":
    sys.exit()
logger.warning("ours\\n\\udcff\\x1b[31m")
logging.getLogger("library").warning("theirs")
warnings.warn("old name", DeprecationWarning)
thread = threading.Thread(target=lambda: 1 / 0, name="helper")
thread.start()
thread.join()
raise ValueError("the end")
"""


def rank(number: int, directory: Path, how: str = "loud") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "default", "-c", RANK, str(number), str(directory), how]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("number", [0, 3])
def test_warnings_and_tracebacks_are_recorded_with_time_rank_and_host(tmp_path: Path, number: int) -> None:
    done = rank(number, tmp_path)
    assert done.returncode == 1
    kept = (tmp_path / f"rank_{number:05d}.log").read_text()
    heads = re.findall(rf"^\d{{4}}-\d\d-\d\d [\d:,]+ \[rank {number} on \S+\] (\w+) (.*)$", kept, flags=re.MULTILINE)
    assert heads == [
        ("WARNING", "ours"),
        ("WARNING", "theirs"),
        ("WARNING", "<string>:15: DeprecationWarning: old name"),
        ("ERROR", "thread helper died"),
        ("CRITICAL", "died"),
    ]
    assert kept.count("Traceback") == 2
    assert r"\udcff\x1b[31m" in kept
    assert kept.endswith("ValueError: the end\n")
    assert done.stderr.endswith("ValueError: the end\n")
    assert ("theirs" in done.stderr, "old name" in done.stderr) == (number == 0,) * 2


def test_a_rank_without_problems_has_no_file(tmp_path: Path) -> None:
    assert rank(3, tmp_path, "quiet").returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "rank_00003.log").symlink_to("/dev/full")
    done = rank(3, tmp_path)
    assert done.stderr.endswith("ValueError: the end\n")
    assert "OSError" not in done.stderr


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_under_a_logs_name_is_no_error(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "rank_00003.log")
    done = rank(3, tmp_path)
    assert done.stderr.endswith("ValueError: the end\n")
    assert "OSError" not in done.stderr
