"""Hangs: a rank that makes no progress for too long writes down where it stands, and exits.

Two lines of defence. A thread counts, in ticks, the time that this process lives through without progress: one that is
stopped (SIGSTOP, a suspended job) lives through none, and has its time when it goes on. At `timeout_s` the thread
writes the flight record and ends the process. It needs the interpreter's lock for that, which a C call that never
returns may hold. So each tick also puts off a timer of `faulthandler`, which needs no lock: when `SECOND_LINE` times
`timeout_s` pass without a tick, it prints the stacks on stderr and ends the process with code 1. That timer alone goes
by the clock, and so also ends a process that was stopped for that long.

Python's stacks tell where a rank is; torch's own recorder tells which collectives it has been through, so that the rank
that is behind can be found (`record_collectives`).
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

SECOND_LINE = 2  # of `timeout_s`: beyond the first line, in which a healthy interpreter would have ended the process
REMEMBERED_MARKS = 50
REMEMBERED_COLLECTIVES = 20
STDERR = 2  # the descriptor: `sys.stderr` may be locked by whoever hangs


def record_collectives(directory: Path) -> None:
    """Have torch record its collectives; to be called before the process group is joined.

    What the user has set stays, under the older names as well, which torch still reads. NCCL's process group then
    writes `directory/nccl_rank_<rank>` when one of its own time limits passes, for `torchfrtrace --prefix nccl_rank_`.
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

    One for each process; a forked child has none. The ranks that wait for a hung one run out of time just after it, and
    an exit breaks the collectives of the others, so each lingers between record and exit for all to write theirs. Who
    makes progress meanwhile, or leaves, was only slow, and is spared.

    Args:
        directory: where the flight record will be, as rank_<rank>.txt; made when the context is entered.
        rank: of this process.
        timeout_s: seconds without progress; to be well below the process group's own limit.
    """

    def __init__(self, directory: Path, *, rank: int, timeout_s: float) -> None:
        self.path = directory / f"rank_{rank:05d}.txt"
        self._rank, self._timeout_s = rank, timeout_s
        self._tick_s, self._linger_s = min(1.0, timeout_s / 20), min(10.0, timeout_s / 2)
        self._marks: deque[tuple[float, str]] = deque(maxlen=REMEMBERED_MARKS)
        self._lock = threading.Lock()  # held to arm the second line, to fork, to leave, and to exit
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.progress("starting")
        # A child forked while faulthandler's timer is armed waits for ever, at its exit, for a thread it does not have.
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
        self._thread.join(self._linger_s)  # not for ever: it may be writing to a disk that hangs

    def progress(self, doing: str) -> None:
        """Say that this rank is alive, and what it is about to do; cheap enough for several calls a step."""
        self._marks.append((time.time(), doing))

    def _disarm(self) -> None:
        """Take the lock, and the second line away; a lock that is held keeps the thread from putting it back."""
        self._lock.acquire()
        if not self._left.is_set():
            faulthandler.cancel_dump_traceback_later()

    def _arm(self) -> None:
        """Put the second line up, unless the context was left, and release the lock."""
        if not self._left.is_set():
            faulthandler.dump_traceback_later(SECOND_LINE * self._timeout_s, exit=True, file=STDERR)
        self._lock.release()

    def _forget(self) -> None:
        self._left = threading.Event()  # the parent's thread may have held the lock inside the old one
        self._left.set()
        self._lock.release()

    def _watch(self) -> None:
        seen, lived_s, last_s = self._marks[-1], 0.0, time.monotonic()
        while not self._left.wait(self._tick_s):
            self._lock.acquire()
            self._arm()
            now_s = time.monotonic()
            lived_s += min(now_s - last_s, 2 * self._tick_s)  # what took longer, this process did not live through
            last_s = now_s
            if self._marks[-1] is not seen:
                seen, lived_s = self._marks[-1], 0.0
            elif lived_s >= self._timeout_s:
                self._report(seen)
                self._left.wait(self._linger_s)
                with self._lock:
                    if self._marks[-1] is seen and not self._left.is_set():
                        os._exit(ExitCode.HUNG)

    def _report(self, mark: tuple[float, str]) -> None:
        """Write the flight record, and say on stderr where it is."""
        since_s, doing = mark
        line = f"rank {self._rank}: no progress for {time.time() - since_s:.0f} s, since {_clock(since_s)}: {doing}"
        record = f"{_clock(time.time())} {line}\nhost {socket.gethostname()}, pid {os.getpid()}\n\nProgress:\n"
        record += "".join(f"{_clock(at_s)} {what}\n" for at_s, what in self._marks.copy()) + _stacks()
        try:
            write_text(self.path, record)  # torch's recorder may be part of the hang: first without it
            write_text(self.path, record + _collectives())
            line += f"; stacks and collectives are in {self.path}"
        except Exception as error:  # whatever it is, the process has to end
            line += f"; writing {self.path} failed: {error!r}"
        os.write(STDERR, f"{line}\n".encode())


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{int(seconds % 1 * 1000):03d}"


def _stacks() -> str:
    """Return the stacks of all threads of Python but this one, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "".join(
        f"\nThread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
        if ident != threading.get_ident()
    )


def _collectives() -> str:
    """Return the last collectives that torch recorded, one line each; gloo knows none as started, only as done."""
    torch_distributed = sys.modules.get("torch._C._distributed_c10d")  # an import now might wait for the hung thread
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
