"""Names of streaming's shared memory: one run at a time chooses them, and those of dead runs are freed.

Streaming names the shared memory of a dataset by the first free number, which it finds by opening the segments that
exist. Two runs that start at the same time find the same number. And every later start opens the segments that killed
runs have left behind, five files for each dataset, until it reaches the limit on open files.

The first rank of a node creates the names. It therefore holds one lock while they are chosen, and another one on a file
that bears the number, for as long as the rank or one of its loader workers lives. A start first removes the segments of
all numbers whose file is no longer locked. Segments without such a file are not ours, and are left alone.
"""

import fcntl
import os
import tempfile
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch.distributed as dist

from pipeline.runtime.world import world_from_environment

SHARED_MEMORY = Path("/dev/shm")  # our lock files, too: this folder is never shared by nodes, unlike a temporary folder
TEMPORARY = Path(tempfile.gettempdir())  # where streaming puts its own lock files
OWNER, STARTING = "streaming_owner_", "streaming_starting"
PATIENCE_S = 60  # seconds to wait for another start


@contextmanager
def one_start_at_a_time() -> Iterator[None]:
    """Free the names of dead runs, and let one run on this machine at a time choose names; all ranks must call it.

    A start stops waiting for another one after `PATIENCE_S`, because jobs that share several nodes could wait for each
    other.
    """
    descriptor = _opened(SHARED_MEMORY / STARTING) if world_from_environment().local_rank == 0 else None
    try:
        if descriptor is not None:
            deadline_s = time.monotonic() + PATIENCE_S
            while not _locked(descriptor) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            free_names_of_dead_runs()
        if dist.is_initialized():
            dist.barrier()  # all ranks look for free names, and must see the same ones
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def hold_name(number: int, *, owner: object) -> None:
    """Hold the name with this number for as long as `owner`, or a process forked from this one, lives."""
    if world_from_environment().local_rank == 0:
        descriptor = _opened(SHARED_MEMORY / f"{OWNER}{number:06}")
        if descriptor is not None:
            _locked(descriptor)
            weakref.finalize(owner, os.close, descriptor)


def free_names_of_dead_runs() -> None:
    """Remove the shared memory and the lock files of all names whose owner no longer lives."""
    for path in SHARED_MEMORY.glob(f"{OWNER}*"):
        descriptor = _opened(path)
        if descriptor is None:
            continue
        if _locked(descriptor):
            number = path.name.removeprefix(OWNER)
            for left in [*SHARED_MEMORY.glob(f"{number}_*"), *TEMPORARY.glob(f"{number}_*"), path]:
                with suppress(OSError):
                    left.unlink()
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    """Return a descriptor of a file, which is created if necessary; None if it belongs to another user."""
    with suppress(PermissionError):
        return os.open(path, os.O_RDONLY | (0 if path.exists() else os.O_CREAT), 0o666)
    return None


def _locked(descriptor: int) -> bool:
    """Lock a file; return False if another process holds the lock."""
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
