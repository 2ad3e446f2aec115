"""Runs of write_shards for tests: small corpora, command lines, the written files, and runs that are killed midway."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from data_prep import write_shards
from tests.conftest import REPOSITORY, is_alive
from tests.helpers.held import Hold, wait_until

STDLIB = Path(sysconfig.get_path("stdlib"))
SEQ_LEN, LOOKAHEAD = 64, 8


def copy_packages(folder: Path, *names: str) -> Path:
    """Copy the sources of packages of the standard library into a folder, which is made if need be; return it."""
    for name in names:
        shutil.copytree(STDLIB / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def make_corpus(folder: Path) -> Path:
    """Make a folder of Python sources of about 400 kB, with a duplicate, an empty file and a binary one."""
    copy_packages(folder, "json", "email")
    shutil.copy(folder / "json" / "decoder.py", folder / "zz_copy.py")
    (folder / "empty.py").touch()
    (folder / "binary.py").write_bytes(b"\0\1")
    return folder


def files_of(root: Path) -> dict[str, bytes]:
    """Return the content of each file below a folder, by its path in it."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def written_files(arguments: Sequence[str], out: Path) -> dict[str, bytes]:
    """Run write_shards, whose --out is `out`, in this process; return the files that it wrote."""
    write_shards.main(arguments)
    return files_of(out)


def option_words(options: Mapping[str, object]) -> list[str]:
    """Return a command line with these options; spaces separate the values of one that takes several."""
    return [word for name, value in options.items() for word in (f"--{name}", *str(value).split(" "))]


def model_arguments(corpus: Path, model: Path, out: Path, **changes: object) -> list[str]:
    """Return a command line of write_shards for several parts, with a SentencePiece model."""
    options = {
        "input": corpus, "tokenizer": model, "out": out, "seq_len": SEQ_LEN, "lookahead": LOOKAHEAD,
        "val_fraction": 0.2, "part_bytes": 100_000, "num_workers": 1,
    }  # fmt: skip
    return option_words(options | changes)


def byte_arguments(corpus: Path, out: Path, **changes: object) -> list[str]:
    """Return a command line of write_shards for several parts of bytes, with exact deduplication."""
    options = {
        "input": corpus, "tokenizer": "bytes", "out": out, "seq_len": SEQ_LEN, "val_fraction": 0.2,
        "part_bytes": 60_000, "num_workers": 1, "dedup": "exact",
    }  # fmt: skip
    return option_words(options | changes)


def held_run(arguments: Sequence[str], hold: Hold, **options: Any) -> subprocess.Popen[Any]:
    """Start the command of `hold` with one worker; return its process once it waits there."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.held", *arguments], cwd=REPOSITORY, env={**os.environ, **hold.variables},
        **quiet | options,
    )  # fmt: skip
    hold.reached(run)
    return run


def held_in_part(index: int, *, file: Path, splits: int = 2) -> Hold:
    """Return a hold in which the only worker has finished `index` parts of `splits` splits, and staged the next."""
    at = "data_prep.shards.part_writer:_publish"
    return Hold(command="data_prep.write_shards", at=at, after=index * splits, file=file)


def kill(run: subprocess.Popen[Any]) -> None:
    """kill -9 a run, and wait until its workers have ended too, so that no two processes write one part later."""
    workers = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    wait_until(lambda: not any(map(is_alive, workers)))


def kill_in_second_part(arguments: Sequence[str], *, file: Path, splits: int = 2, **options: Any) -> None:
    """Start a run with one worker, and kill -9 it in the middle of its second part."""
    kill(held_run(arguments, held_in_part(1, file=file, splits=splits), **options))
