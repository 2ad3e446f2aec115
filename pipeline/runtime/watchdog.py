"""Ends a rank that hangs, after it has written down where it stands.

There are two lines of defence. First, a thread counts in ticks how long this process has run without progress. Time
during which the process is stopped (SIGSTOP, a suspended job) does not count. After `timeout_s` the thread writes the
flight record and ends the process. It needs the interpreter's lock for that, which a C call that never returns may
hold.

So each tick also postpones a timer of `faulthandler`, which needs no lock. If `SECOND_LINE` times `timeout_s` pass
without a tick, the timer prints the stacks on stderr and ends the process with code 1. This timer goes by the clock, so
it also ends a process that was stopped for that long.

Python's stacks show where a rank is. torch's own recorder shows which collectives it has completed, which tells which
rank is behind (`record_collectives`).
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

from common.files import write_text
from pipeline.runtime.stop import ExitCode

SECOND_LINE = 2  # times `timeout_s`; a healthy interpreter has ended the process before that
REMEMBERED_MARKS = 50
REMEMBERED_COLLECTIVES = 20
STDERR = 2  # the descriptor, because the thread that hangs may hold the lock of `sys.stderr`


def record_collectives(directory: Path) -> None:
    """Make torch record its collectives. Call it before joining the process group.

    Variables that the user has set are kept, also under their older names, which torch still reads. NCCL's process
    group then writes `directory/nccl_rank_<rank>`, for `torchfrtrace --prefix nccl_rank_`, when one of its own time
    limits passes.
    """
    for name, older_name, value in (
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", "2000"),
        ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(directory.absolute() / "nccl_rank_")),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_DUMP_ON_TIMEOUT", "1"),
    ):
        if older_name not in os.environ:
            os.environ.setdefault(name, value)


class Watchdog:
    """Ends this process with `ExitCode.HUNG` if `timeout_s` pass without `progress` inside the context.

    A process has one watchdog; a forked child has none. Ranks that wait for a hung rank run out of time just after it,
    and an exit breaks the collectives of the others. So each rank lingers between its record and its exit, until all
    ranks have written theirs. A rank that makes progress meanwhile, or leaves the context, was only slow, and goes on.

    Args:
        directory: where the flight record is written, as rank_<rank>.txt; created with the first record.
        rank: rank of this process.
        timeout_s: allowed seconds without progress; must be well below the process group's own limit.
    """

    def __init__(self, directory: Path, *, rank: int, timeout_s: float) -> None:
        self.path = directory / f"rank_{rank:05d}.txt"
        self._rank, self._timeout_s = rank, timeout_s
        self._tick_s, self._linger_s = min(1.0, timeout_s / 20), min(10.0, timeout_s / 2)
        self._marks: deque[tuple[float, str]] = deque(maxlen=REMEMBERED_MARKS)
        self._lock = threading.Lock()  # held to arm the second line, to fork, to leave and to exit
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.progress("starting")
        # A child that is forked while faulthandler's timer is set waits at its exit for a thread that it does not have.
        os.register_at_fork(before=self._disarm, after_in_parent=self._arm, after_in_child=self._forget)
        self._lock.acquire()
        self._arm()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disarm()
        self._left.set()
        self._lock.release()
        self._thread.join(self._linger_s)  # with a limit, because it may be writing to a disk that hangs

    def progress(self, doing: str) -> None:
        """Note that this rank is alive, and what it does next; cheap enough for several calls per step."""
        self._marks.append((time.time(), doing))

    def _disarm(self) -> None:
        """Cancel the timer and keep the lock, which prevents the thread from setting the timer again."""
        self._lock.acquire()
        if not self._left.is_set():
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Set the timer, unless the context was left, and release the lock."""
        if not self._left.is_set():
            faulthandler.dump_traceback_later(SECOND_LINE * self._timeout_s, exit=True, file=STDERR)
        self._lock.release()

    def _forget(self) -> None:
        """Leave the context in a forked child, which has no thread."""
        self._left = threading.Event()  # the parent's thread may have held the lock inside the old one
        self._left.set()
        self._lock.release()

    def _watch(self) -> None:
        seen, running_s, last_s = self._marks[-1], 0.0, time.monotonic()
        while not self._left.wait(self._tick_s):
            self._lock.acquire()
            self._arm()
            now_s = time.monotonic()
            running_s += min(now_s - last_s, 2 * self._tick_s)  # during the rest this process was stopped
            last_s = now_s
            if self._marks[-1] is not seen:
                seen, running_s = self._marks[-1], 0.0
            elif running_s >= self._timeout_s:
                self._report(seen)
                self._left.wait(self._linger_s)
                with self._lock:
                    if self._marks[-1] is seen and not self._left.is_set():
                        os._exit(ExitCode.HUNG)

    def _report(self, mark: tuple[float, str]) -> None:
        """Write the flight record, and print on stderr where it is."""
        since_s, doing = mark
        line = f"rank {self._rank}: no progress for {time.time() - since_s:.0f} s, since {_clock(since_s)}: {doing}"
        record = f"{_clock(time.time())} {line}\nhost {socket.gethostname()}, pid {os.getpid()}\n\nProgress:\n"
        record += "".join(f"{_clock(at_s)} {what}\n" for at_s, what in self._marks.copy()) + _stacks()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, record)  # first without torch's recorder, which may be part of the hang
            write_text(self.path, record + _collectives())
            line += f"; stacks and collectives are in {self.path}"
        except Exception as error:  # the process must end, whatever failed
            line += f"; writing {self.path} failed: {error!r}"
        os.write(STDERR, f"{line}\n".encode())


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"


def _stacks() -> str:
    """Return the stacks of all Python threads except this one, innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"\nThread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def _collectives() -> str:
    """Return the last collectives that torch recorded, one per line; gloo marks them only as done, never as started."""
    torch_distributed = sys.modules.get("torch._C._distributed_c10d")  # an import might wait for the hung thread
    text = ""
    for name in ("_dump_nccl_trace_json", "_dump_fr_trace_json"):
        if dump := getattr(torch_distributed, name, None):
            for entry in json.loads(dump()).get("entries", [])[-REMEMBERED_COLLECTIVES:]:
                number = entry["p2p_seq_id"] if entry["is_p2p"] else entry["collective_seq_id"]
                state = "done" if entry["retired"] else entry["state"]
                text += (
                    f"{_clock(entry['time_created_ns'] / 1e9)} {' '.join(entry['process_group'])} #{number}"
                    f" {entry['profiling_name']} {entry['input_sizes']} -> {entry['output_sizes']}: {state}\n"
                )
    return "\nCollectives (time, group, number, operation, sizes, state):\n" + (text or "none recorded\n")
