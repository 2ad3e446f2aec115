"""The endings of a run: its exit codes, and stop requests, which the training loop polls.

A stop request is SIGTERM, SIGUSR1 (Slurm's warning before the time limit), or the death of the launcher that started
this rank, because a rank without its launcher would train on unnoticed.
"""

import os
import signal
from enum import IntEnum
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


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
        self._parent = os.getppid() if has_launcher else None
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # Python's tracker of shared memory is a process of its own. It inherits this mask, or a signal to all processes
        # of a job would kill it, and the shared memory that it tracks would leak.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher may have held them back until now

    @property
    def reason(self) -> str | None:
        """The name of the signal, or "its launcher's death"; None if there was no request."""
        if self._reason is None and self._parent is not None and os.getppid() != self._parent:
            self._reason = "its launcher's death"
        return self._reason

    def close(self) -> None:
        """Ignore later signals: while the interpreter shuts down, without handlers, they would change the exit code."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name
