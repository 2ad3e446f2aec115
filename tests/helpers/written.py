"""What the tests of write_shards share: a small corpus, its arguments, what was written, and runs that wait."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import REPOSITORY, is_alive
from tests.helpers.held import Hold, wait_until

STDLIB = Path(sysconfig.get_path("stdlib"))
SEQ_LEN, LOOKAHEAD = 64, 8


def make_corpus(folder: Path) -> Path:
    """Make a folder of Python sources of about 400 kB, with a duplicate, an empty file and a binary one."""
    shutil.copytree(STDLIB / "json", folder / "json", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(STDLIB / "email", folder / "email", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(folder / "json" / "decoder.py", folder / "zz_copy.py")
    (folder / "empty.py").touch()
    (folder / "binary.py").write_bytes(b"\0\1")
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    """Return each file below a folder, by its path in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def arguments_for(corpus: Path, model: Path, out: Path, **changes: Any) -> list[str]:
    """Return write_shards' arguments for several parts of `corpus`."""
    options = {
        "input": corpus,
        "tokenizer": model,
        "out": out,
        "seq_len": SEQ_LEN,
        "lookahead": LOOKAHEAD,
        "val_fraction": 0.2,
        "part_bytes": 100_000,
        "num_workers": 1,
    } | changes
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def byte_arguments(corpus: Path, out: Path, **changes: Any) -> list[str]:
    """Return write_shards' arguments for several parts of bytes, without equal documents."""
    options = {"input": corpus, "tokenizer": "bytes", "out": out, "seq_len": SEQ_LEN, "val_fraction": 0.2,
               "part_bytes": 60_000, "num_workers": 1, "dedup": "exact"} | changes  # fmt: skip
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def held_run(arguments: Sequence[str], hold: Hold, **options: Any) -> subprocess.Popen[Any]:
    """Start a run of one worker; return it once it waits at `hold`."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.held", *arguments], cwd=REPOSITORY, env={**os.environ, **hold.variables},
        **quiet | options,
    )  # fmt: skip
    hold.reached(run)
    return run


def in_second_part(file: Path, *, splits: int = 2) -> Hold:
    """The one worker waits when its first part is finished and its second is written, but not in its place."""
    return Hold(command="data_prep.write_shards", at="data_prep.shards.part_writer:_publish", after=splits, file=file)


def kill(run: subprocess.Popen[Any]) -> None:
    """kill -9 a run, and wait until its workers have ended with it, or two would write one part later."""
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def kill_in_second_part(arguments: Sequence[str], *, file: Path, splits: int = 2, **options: Any) -> None:
    """Start a run of one worker, and kill -9 it in the middle of its second part."""
    kill(held_run(arguments, in_second_part(file, splits=splits), **options))
