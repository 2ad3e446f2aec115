"""How a run ends: exit codes, and stop requests, which set a flag that the loop polls.

A request is SIGTERM, SIGUSR1 (Slurm's warning before the time limit), or the death of the launcher that started this
rank, which else would train on unseen.
"""

import os
import signal
from enum import IntEnum
from multiprocessing import resource_tracker
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class ExitCode(IntEnum):
    """What the exit code of a run says; docs/operations.md tells what to do about each."""

    FINISHED = 0
    MISTAKE = 2  # of the user's; common/command_line.py
    BAD_NUMBERS = 65  # EX_DATAERR: the loss or the data went bad; a restart would meet the same again
    FAILED_SAVE = 74  # EX_IOERR: a checkpoint could not be written; the one before is whole
    STOPPED = 75  # EX_TEMPFAIL: saved on request; start again to go on
    HUNG = 76  # EX_PROTOCOL: no progress for too long; start again to go on
    TAKEN_OVER = 77  # EX_NOPERM: a later start of the same job goes on with the run (lease.py)


class Ending(Exception):
    """A run cannot go on. All ranks raise it together, after the same step."""

    def __init__(self, exit_code: ExitCode, why: str) -> None:
        super().__init__(why)
        self.exit_code = exit_code


class StopRequest:
    """`reason` says what asked this rank to stop first; more requests change nothing, so a save is never cut short.

    `has_launcher`: the process that started this one watches over it, and its death is a request too.
    """

    def __init__(self, *, has_launcher: bool) -> None:
        self._reason: str | None = None
        self._parent = os.getppid() if has_launcher else None
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # Python's tracker of shared memory would die of a signal to all processes of a job, and what it tracks leak.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # a launcher may have held them back until now

    @property
    def reason(self) -> str | None:
        """A signal's name, or "its launcher's death"; None while nothing asked."""
        if self._reason is None and self._parent is not None and os.getppid() != self._parent:
            self._reason = "its launcher's death"
        return self._reason

    def close(self) -> None:
        """Take no more requests: what comes while the interpreter ends, without handlers, would be its exit code."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._reason = self._reason or signal.Signals(number).name
