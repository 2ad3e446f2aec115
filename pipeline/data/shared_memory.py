"""Names of shared memory on a machine: chosen by one run at a time, and freed when the run that had them is dead.

streaming names a data set's shared memory by the first free number, which it finds by opening what there is. Two runs
that start at once find the same one. And what killed runs leave is opened by every later start, five files for each
data set, until a start meets the limit on open files.

So the first rank of a node, which makes the names, holds a lock while they are chosen, and another for as long as it or
a loader worker of its lives, on a file that bears the number. A start first removes what belongs to files that nobody
holds any more. What has no such file is not ours, and stays.
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

SHARED_MEMORY = Path("/dev/shm")  # also our files: it is a machine's own, where a temporary folder may be all nodes'
TEMPORARY = Path(tempfile.gettempdir())  # where streaming puts its own lock files
OWNER, STARTING = "streaming_owner_", "streaming_starting"
PATIENCE_S = 60  # for another start


@contextmanager
def one_start_at_a_time() -> Iterator[None]:
    """Let one run on this machine at a time choose names, after those of dead runs are freed; all ranks must call it.

    Who waits for another start for too long goes on: jobs that share several nodes could wait for each other.
    """
    descriptor = _opened(SHARED_MEMORY / STARTING) if world_from_environment().local_rank == 0 else None
    try:
        if descriptor is not None:
            deadline_s = time.monotonic() + PATIENCE_S
            while not _locked(descriptor) and time.monotonic() < deadline_s:
                time.sleep(0.05)
            free_names_of_the_dead()
        if dist.is_initialized():
            dist.barrier()  # all ranks look for free names, and must see the same
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def own(number: int, owner: object) -> None:
    """Hold the name with this number for as long as `owner`, or a process that this one forks, lives."""
    if world_from_environment().local_rank == 0:
        descriptor = _opened(SHARED_MEMORY / f"{OWNER}{number:06}")
        if descriptor is not None:
            _locked(descriptor)
            weakref.finalize(owner, os.close, descriptor)


def free_names_of_the_dead() -> None:
    """Remove the shared memory and lock files of all names that were owned, and are not any more."""
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
    """Return a descriptor of a file, made if need be; None for another user's."""
    with suppress(PermissionError):
        return os.open(path, os.O_RDONLY | (0 if path.exists() else os.O_CREAT), 0o666)
    return None


def _locked(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
