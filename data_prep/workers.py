"""Worker processes with one shared progress bar, which end with their parent and report failures in one line.

A fork server imports what the workers need once, and each worker is a fork of it. So many workers start as fast as one,
and no worker inherits the lock that the parent holds.
"""

import argparse
import errno
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from tqdm import tqdm

from common.command_line import UserError, whole_number

T = TypeVar("T")
_FULL_OR_CLOSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.EEXIST, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENOTEMPTY)


def add_workers_argument(group: argparse._ArgumentGroup) -> None:
    """Add --num_workers, by default one for each CPU that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count, count_help = whole_number(at_least=1, at_most=1024), "processes (default: one per CPU)"
    group.add_argument("--num_workers", type=count, default=cpus, metavar="N", help=count_help)


def write_problem(error: OSError) -> str | None:
    """Return why a file cannot be written and what to do, if a person can do something; None for a defect."""
    if error.errno in _FULL_OR_CLOSED:
        return f"{error.strerror}; make room, then run the same command to continue"
    if error.errno in _IN_THE_WAY:
        path = error.filename2 or error.filename
        return f"{error.strerror}: {path}; move what is in its place, then run the same command to continue"
    return None


class ProgressCounter:
    """Documents, input bytes and tokens so far, summed over all processes.

    `read` takes no lock, because a killed worker may hold it forever.
    """

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        self._totals = context.Array("q", 3)

    def add(self, *, documents: int = 0, input_bytes: int = 0, tokens: int = 0) -> None:
        with self._totals.get_lock():
            for i, amount in enumerate((documents, input_bytes, tokens)):
                self._totals[i] += amount

    def read(self) -> tuple[int, int, int]:
        documents, input_bytes, tokens = list(self._totals.get_obj())
        return documents, input_bytes, tokens


_progress: ProgressCounter | None = None


def count_progress(*, documents: int = 0, input_bytes: int = 0, tokens: int = 0) -> None:
    """Add to the parent's progress bar, if this process is a worker."""
    if _progress is not None:
        _progress.add(documents=documents, input_bytes=input_bytes, tokens=tokens)


@contextmanager
def worker_pool(n_workers: int) -> Iterator[tuple[ProcessPoolExecutor, ProgressCounter]]:
    """Yield a pool of worker processes, and the counter that they add to.

    Raises:
        UserError: a worker was killed, or the disk is full or not writable.
    """
    # otherwise multiprocessing's resource tracker warns, after Ctrl-C, of semaphores that were not freed
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.shards.part_writer"])
    progress = ProgressCounter(context)
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start, initargs=(progress,))
    try:
        yield pool, progress
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command to continue", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # without waiting for the workers, which end with this process
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, probably because the machine ran out of memory: try fewer --num_workers; the "
            "same command continues where it stopped"
        ) from error
    except OSError as error:
        if (problem := write_problem(error)) is None:
            raise
        raise UserError(f"cannot write: {problem}") from error
    finally:
        pool.shutdown(cancel_futures=True)


def results_of(
    futures: Sequence[Future[T]], progress: ProgressCounter, *, input_bytes: int | None, verb: str
) -> list[T]:
    """Return the results in order, and show a progress bar meanwhile; the first failure is raised at once.

    Args:
        futures: the tasks, one for each part.
        progress: the counter that the tasks add to.
        input_bytes: the bytes that the tasks read, if progress can be measured by them; None measures it by parts.
        verb: describes the bar, such as "writing".
    """
    if not futures:
        return []
    pending: set[Future[T]] = set(futures)
    documents_before, bytes_before, tokens_before = progress.read()
    interval_s = 0.1 if sys.stderr.isatty() else 10.0  # few lines in a log file
    started = time.monotonic()
    is_measured = input_bytes is not None
    total, unit = (input_bytes, "B") if is_measured else (len(futures), "part")
    with tqdm(desc=verb, total=total, unit=unit, unit_scale=is_measured, mininterval=interval_s) as bar:
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
            documents, n_bytes, tokens = progress.read()
            n_read, n_finished = n_bytes - bytes_before, len(futures) - len(pending)
            mb_per_s = n_read / 1e6 / (time.monotonic() - started)
            bar.set_postfix_str(
                f"{documents - documents_before:,} documents, {(tokens - tokens_before) / 1e6:.1f}M tokens, "
                + (f"{n_finished}/{len(futures)} parts" if is_measured else f"{mb_per_s:.1f} MB/s"),
                refresh=False,
            )
            bar.update((n_read if is_measured else n_finished) - bar.n)
    return [future.result() for future in futures]


def _start(progress: ProgressCounter) -> None:
    """Prepare a worker process: it ends at once when its parent ends, or at Ctrl-C."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
