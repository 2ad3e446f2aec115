"""The time and memory of the real command, `python -m data_prep.write_shards`.

The memory of the command and of all its child processes is sampled ten times a second. The figures are the peak of any
one process (resident), and the peak of all processes together, in which shared memory counts once (proportional).
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks.data_prep.corpus import EXTENSIONS, Corpus, write_parquet
from common.tokenizers import BYTES

_LOOKS_PER_S = 10
MEMORY_WAYS: dict[str, list[str]] = {
    "bytes": [],
    "gigatoken": [],  # the tokenizer of all the following ways too
    "near deduplication": ["--dedup", "near"],
    "shuffled": ["--shuffle_documents"],
    "parquet": [],
}


def command(source: Path, out: Path, *, tokenizer: str | Path, n_workers: int, more: Sequence[str] = ()) -> list[str]:
    """Return the words of the command."""
    words: list[object] = ["--input", source, "--extensions", *EXTENSIONS, "--tokenizer", tokenizer, "--out", out]
    words += ["--num_workers", n_workers, "--val_fraction", 0, *more]
    return [sys.executable, "-m", "data_prep.write_shards", *map(str, words)]


def seconds_of(words: Sequence[str]) -> float:
    """Run a command; return its wall time in seconds, including its start."""
    started = time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def peak_memory_of(words: Sequence[str]) -> dict[str, int]:
    """Run a command; return the peak bytes of `one_process` and of `all_processes`."""
    peaks = {"one_process": 0, "all_processes": 0}
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        while run.poll() is None:
            used = [info for process in _tree(run.pid) if (info := _memory(process)) is not None]
            peaks["one_process"] = max([peaks["one_process"], *(rss for rss, _ in used)])
            peaks["all_processes"] = max(peaks["all_processes"], sum(pss for _, pss in used))
            time.sleep(1 / _LOOKS_PER_S)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, words)
    return peaks


def peak_memory(way: str, corpus: Corpus, out: Path, *, model: Path) -> dict[str, int]:
    """Return the peak bytes of one way of `MEMORY_WAYS` on a corpus."""
    source, tokenizer = corpus.folder, BYTES if way == "bytes" else model
    if way == "parquet":
        source = corpus.folder.with_suffix(".parquet")
        write_parquet(corpus, source)
    try:
        return peak_memory_of(command(source, out, tokenizer=tokenizer, n_workers=1, more=MEMORY_WAYS[way]))
    finally:
        if source != corpus.folder:
            source.unlink()


def _tree(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _memory(process: psutil.Process) -> tuple[int, int] | None:
    try:
        info = process.memory_full_info()
    except psutil.Error:  # it has ended
        return None
    return info.rss, info.pss
