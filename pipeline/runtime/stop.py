"""The endings of a run: its exit codes, and stop requests, which the training loop polls.

A stop request is SIGTERM, SIGUSR1 (Slurm's warning before the time limit), the first Ctrl-C, or the death of the
launcher that started this rank, because a rank without its launcher would train on unnoticed. A second Ctrl-C ends the
process at once. A thread of its own waits for Ctrl-C, because Python's handlers wait for the main thread, which may be
in a collective that never ends.
"""

from common.endings import INTERRUPTED_EXIT_CODE, is_told_here

import os
import signal
import threading
from contextlib import suppress
from enum import IntEnum
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
PARENT_LOOKS_S = 1.0  # between two looks whether a loader worker's rank is alive
STOPPING = "stopping: the run saves after this step; Ctrl-C again ends it at once, and loses what no checkpoint has"
ENDED = "ended at once by Ctrl-C: the same command goes on from the newest checkpoint"


class ExitCode(IntEnum):
    """Exit codes of a run; docs/operations.md says what to do about each."""

    FINISHED = 0
    MISTAKE = 2  # a user's mistake, see common/command_line.py
    BAD_NUMBERS = 65  # EX_DATAERR: bad losses or damaged data; a restart would meet them again
    FAILED_SAVE = 74  # EX_IOERR: a checkpoint could not be written; earlier ones are intact
    STOPPED = 75  # EX_TEMPFAIL: stopped on request after saving; start again to continue
    HUNG = 76  # EX_PROTOCOL: no progress for too long; start again to continue
    TAKEN_OVER = 77  # EX_NOPERM: a later start of the same job has taken the run over (lease.py)


class Ending(Exception):
    """A run must end before its last step. All ranks raise it together, after the same step."""

    def __init__(self, exit_code: ExitCode, why: str) -> None:
        super().__init__(why)
        self.exit_code = exit_code


class StopRequest:
    """Remembers the first stop request. Later requests change nothing, so that they never cut a save short."""

    def __init__(self, *, has_launcher: bool) -> None:
        """Install the signal handlers.

        Args:
            has_launcher: whether the parent process is a launcher, whose death is a stop request too.
        """
        self._reason: str | None = None
        self._is_closed = False
        self._parent = os.getppid() if has_launcher else None
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # Python's tracker of shared memory is a process of its own. It inherits this mask, or a signal to all processes
        # of a job would kill it, and the shared memory that it tracks would leak.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher may have held them back until now
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as in jobs in the background
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # also in later threads and children
            threading.Thread(target=self._await_interrupts, name="Ctrl-C", daemon=True).start()

    @property
    def reason(self) -> str | None:
        """The name of the signal, or "its launcher's death"; None if there was no request."""
        if self._reason is None and self._parent is not None and os.getppid() != self._parent:
            self._reason = "its launcher's death"
        return self._reason

    def close(self) -> None:
        """Ignore later signals: while the interpreter shuts down, without handlers, they would change the exit code."""
        self._is_closed = True
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name

    def _await_interrupts(self) -> None:
        signal.sigwait([signal.SIGINT])
        if self._is_closed:
            return
        self._reason = self._reason or signal.SIGINT.name
        _tell(STOPPING)
        signal.sigwait([signal.SIGINT])
        if not self._is_closed:
            _tell(ENDED)
            os._exit(INTERRUPTED_EXIT_CODE)


def _tell(message: str) -> None:
    """Print a line on one rank of each node, below what the terminal shows of Ctrl-C."""
    if is_told_here():
        with suppress(OSError):
            os.write(2, f"\n{message}\n".encode())


def end_with_parent_only(_worker: int, *, parent: int) -> None:
    """Let this process, a loader worker, end when `parent` asks it to or ends itself, and at no other request.

    Terminals and launchers signal whole process trees. A rank whose loader workers end can neither finish its step nor
    save. So SIGTERM is ignored here unless `parent` sends it; Ctrl-C is blocked in all processes that a rank starts.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # threads that start from now on inherit this
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        received = signal.sigtimedwait([signal.SIGTERM], PARENT_LOOKS_S)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)
