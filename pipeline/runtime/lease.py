"""The right to write into a run directory. If several starts of a job believe they own it, only the last may write.

A machine that is cut off from its scheduler does not know that its job was started again elsewhere. Its ranks go on,
with the same run directory. The lock on `.lock` ends with the process that holds it, so it would keep out the new start
instead of the old one. A lease can be taken away: `lease.json` names its holder, and a later start of the same job
writes its own name there. The earlier start notices after its current step, before it begins a checkpoint, and before
it gives a checkpoint its final name; it then ends. What can still slip through, between that last look and the rename,
is a complete checkpoint of the same run.

A start gives way only when it has read another start's token. A file that is missing, damaged or cannot be read for a
moment, as on a network file system (ESTALE), takes the lease from nobody.

Any other start is refused while the lock is held.
"""

import secrets
import time
from pathlib import Path
from typing import Any

from common.command_line import UserError
from common.files import hold_lock, write_json
from common.small_files import BadFileError, read_json
from pipeline.runtime.logs import logger
from pipeline.runtime.world import Launch

READ_ATTEMPTS = 4  # a second apart
GRACE_S = 60.0  # for an earlier start of the same job to finish its step and end, once its lease is taken


class Lost(OSError):
    """A later start of this job has taken the lease: this process must write nothing more."""


class Lease:
    """The lease on a run directory, as one start of a job sees it. Only rank 0 takes it and looks at it."""

    def __init__(self, run_dir: Path, *, launch: Launch) -> None:
        self.token = secrets.token_hex(4)
        """Tells this start from every other."""
        self._run_dir, self._path, self._launch = run_dir, run_dir / "lease.json", launch

    @property
    def holder(self) -> Launch | None:
        """The start that took the lease last; None if no start did, or `lease.json` is damaged or cannot be read."""
        try:
            return _launch_in(self._read())
        except OSError:
            return None

    @property
    def is_taken_over(self) -> bool:
        """True if `lease.json` holds another start's token. Opens the file anew, so that NFS asks the server."""
        try:
            return self._names_another(self._read(attempts=1))
        except OSError:
            return False  # the next look may tell more

    def take(self) -> None:
        """Take the lease, whoever holds it."""
        write_json(self._path, {"job": self._launch.job, "restart": self._launch.restart, "token": self.token})

    def check(self) -> None:
        """Check that no other start has taken the lease.

        Raises:
            Lost: another start has taken it.
            OSError: the file cannot be read, also not a few seconds later, so nobody knows.
        """
        values = self._read()
        if self._names_another(values):
            raise Lost(f"{_launch_in(values) or 'another start'} has taken the run over")

    def acquire(self) -> None:
        """Lock the run directory for as long as this process lives, and take the lease.

        An earlier start of the same job loses its lease first, and has `GRACE_S` to end. It stops before its next step;
        if it does not notice the loss, it still cannot write.

        Raises:
            UserError: another job trains this run, or a later start of this job does, or `lease.json` cannot be read.
        """
        try:
            before = _launch_in(self._read())
        except OSError as error:
            raise UserError(f"{self._path} cannot be read: {error.strerror}; check the file system") from error
        if before is not None and before.is_later_than(self._launch):
            raise UserError(f"{self._run_dir} has been taken over by {before}; this earlier start ends")
        takes_over = before is not None and self._launch.is_later_than(before)
        if takes_over:
            self.take()
        process = self._lock(patience_s=GRACE_S if takes_over else 0.0)
        if process is not None and not takes_over:
            raise UserError(f"{self._run_dir} is in use by {process}; stop it, or set another run.name")
        if process is not None:
            logger.warning("%s, of an earlier start of this job, is still running; it can no longer write", process)
        self.take()

    def _lock(self, *, patience_s: float) -> str | None:
        """Lock the run directory; return the process that still holds the lock after `patience_s`, or None."""
        end_s = time.monotonic() + patience_s
        while (process := hold_lock(self._run_dir / ".lock")) is not None and time.monotonic() < end_s:
            time.sleep(0.5)
        return process

    def _names_another(self, values: dict[str, Any]) -> bool:
        return isinstance(values.get("token"), str) and values["token"] != self.token

    def _read(self, *, attempts: int = READ_ATTEMPTS) -> dict[str, Any]:
        """Return what `lease.json` holds; empty if there is none, or it is damaged.

        Raises:
            OSError: none of the attempts could read it.
        """
        for attempt in range(1, attempts + 1):
            try:
                values = read_json(self._path)
                return values if isinstance(values, dict) else {}
            except BadFileError as error:
                cause = error.__cause__
                if not isinstance(cause, OSError) or isinstance(cause, FileNotFoundError):
                    return {}
                if attempt == attempts:
                    raise cause from None
                time.sleep(1)
        raise AssertionError("at least one attempt")


def _launch_in(values: dict[str, Any]) -> Launch | None:
    job, restart = values.get("job"), values.get("restart")
    return Launch(job=job, restart=restart) if isinstance(job, str) and type(restart) is int else None
