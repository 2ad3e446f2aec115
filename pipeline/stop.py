"""Stop requests: SIGTERM, or SIGUSR1 (Slurm's warning before the time limit), set a flag that the loop polls."""

import signal
from types import FrameType

STOPPED_EXIT_CODE = 75  # EX_TEMPFAIL: saved on request; start again to go on


class StopRequest:
    """`requested` turns true at the first signal; more signals change nothing, so a save is never cut short."""

    def __init__(self) -> None:
        self.requested = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
