"""A process under a watchdog: `python -m tests.helpers.hanging WAY DIRECTORY TIMEOUT_S [RANK PORT]`."""

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.runtime.watchdog import Watchdog, record_collectives

FORKED_EXIT_CODE = 7


def hang(watchdog: Watchdog) -> None:
    for number in range(60):
        watchdog.progress(f"mark {number}")
    threading.Thread(target=time.sleep, args=[1000], name="bystander", daemon=True).start()
    time.sleep(1000)


def hang_without_disk(watchdog: Watchdog) -> None:
    watchdog.path.parent.parent.mkdir(parents=True, exist_ok=True)
    watchdog.path.parent.write_text("no folder any more")
    time.sleep(1000)


def hang_with_the_interpreter(watchdog: Watchdog) -> None:
    ctypes.PyDLL(None).sleep(1000)  # PyDLL holds the interpreter's lock during a call


def go_slowly(watchdog: Watchdog) -> None:
    for number in range(12):
        watchdog.progress(f"slow step {number}")
        time.sleep(0.5)


def leave(watchdog: Watchdog) -> None:
    watchdog.__exit__(None, None, None)
    time.sleep(3)


def wait_for_a_line(watchdog: Watchdog) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    watchdog.progress("went on")


def go_on_at_the_last_moment(watchdog: Watchdog) -> None:
    while not watchdog.path.exists():
        time.sleep(0.01)
    watchdog.progress("went on")
    time.sleep(6)  # longer than the watchdog lingers


def fork(watchdog: Watchdog) -> None:
    pid = os.fork()
    if pid == 0:
        time.sleep(3)
        sys.exit(FORKED_EXIT_CODE)  # leaves the context and ends the interpreter, like a parent
    for _ in range(1000):
        watchdog.progress("waiting for the child")
        time.sleep(0.25)
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            assert os.waitstatus_to_exitcode(status) == FORKED_EXIT_CODE
            hang(watchdog)  # the parent is still watched
    os.kill(pid, 9)


def miss_a_collective(watchdog: Watchdog) -> None:
    import torch
    import torch.distributed as dist

    tensor = torch.ones(4, 3)
    dist.all_reduce(tensor)
    dist.barrier()
    watchdog.progress("step 12: forward and backward")
    if dist.get_rank() == 1:
        time.sleep(1000)
    dist.all_reduce(tensor)


def join(directory: Path, *, rank: int, port: int) -> None:
    record_collectives(directory)
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)


WAYS: dict[str, Callable[[Watchdog], None]] = {
    way.__name__: way
    for way in (
        hang, hang_without_disk, hang_with_the_interpreter, go_slowly, leave, wait_for_a_line,
        go_on_at_the_last_moment, fork, miss_a_collective,
    )
}  # fmt: skip


def main() -> None:
    way, directory, timeout_s, *place = sys.argv[1:]
    rank = int(place[0]) if place else 3
    if place:
        join(Path(directory), rank=rank, port=int(place[1]))
    with Watchdog(Path(directory), rank=rank, timeout_s=float(timeout_s)) as watchdog:
        WAYS[way](watchdog)


if __name__ == "__main__":
    main()
