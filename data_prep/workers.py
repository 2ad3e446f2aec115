"""Worker processes that share one progress bar, end with their parent, and fail in words.

A fork server imports what a worker needs once, and each worker is a fork of it, so that many workers start as fast as
one and none inherits the lock that the parent holds.
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

from common.command_line import UserError

T = TypeVar("T")
WRITE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def add_workers_argument(group: argparse._ArgumentGroup) -> None:
    """Add --num_workers, by default one for each CPU that this process may use."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    group.add_argument("--num_workers", type=int, default=cpus, metavar="N", help="processes (default: one per CPU)")


class Progress:
    """Documents, input bytes and tokens so far, summed over processes; reading takes no lock, so it cannot hang."""

    def __init__(self, context: multiprocessing.context.BaseContext) -> None:
        self._totals = context.Array("q", 3)

    def add(self, *, documents: int = 0, input_bytes: int = 0, tokens: int = 0) -> None:
        with self._totals.get_lock():
            for i, amount in enumerate((documents, input_bytes, tokens)):
                self._totals[i] += amount

    def read(self) -> tuple[int, int, int]:
        documents, input_bytes, tokens = list(self._totals.get_obj())
        return documents, input_bytes, tokens


_progress: Progress | None = None


def report(*, documents: int = 0, input_bytes: int = 0, tokens: int = 0) -> None:
    """Called in a worker: add to the parent's progress bar."""
    if _progress is not None:
        _progress.add(documents=documents, input_bytes=input_bytes, tokens=tokens)


@contextmanager
def worker_pool(n_workers: int) -> Iterator[tuple[ProcessPoolExecutor, Progress]]:
    """Worker processes, and the counter that they add to.

    Raises:
        UserError: a worker was killed, or the disk is full.
    """
    # multiprocessing's own process would warn of semaphores that Ctrl-C leaves to it
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["data_prep.shards.part_writer"])
    progress = Progress(context)
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=_start, initargs=(progress,))
    try:
        yield pool, progress
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues it", file=sys.stderr, flush=True)
        os._exit(128 + signal.SIGINT)  # not waiting for workers: they end with this process, and may at any moment
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, mostly for want of memory: try fewer --num_workers; "
            "the same command continues where it stopped"
        ) from error
    except OSError as error:
        if error.errno not in WRITE_ERRORS:
            raise
        raise UserError(f"cannot write: {error.strerror}; make room, and the same command continues it") from error
    finally:
        pool.shutdown(cancel_futures=True)


def results_of(futures: Sequence[Future[T]], progress: Progress, *, input_bytes: int | None, verb: str) -> list[T]:
    """Return the results in order, showing a bar meanwhile; the first failure is raised at once.

    It goes by bytes, or, where reading does not tell how far through them it has come, by parts that are finished: both
    tell when it will end.
    """
    if not futures:
        return []
    pending: set[Future[T]] = set(futures)
    documents_before, bytes_before, tokens_before = progress.read()
    interval_s = 0.1 if sys.stderr.isatty() else 10.0  # a log file needs few lines
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


def _start(progress: Progress) -> None:
    """Prepare a worker process: it ends at once when its parent does, or at Ctrl-C."""
    global _progress
    _progress = progress
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
