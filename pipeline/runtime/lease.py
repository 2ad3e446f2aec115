"""The lease on a run's folder: of all that believe to train this run, the one that took it last may write.

A machine that is cut off from its scheduler does not know that its job has been started again elsewhere, and its ranks
go on, with the same folder. The lock on `.lock` (train.py) ends with the process that holds it, and so would keep out
the new start instead of the old. A lease can be taken away: `lease.json` names its holder; a later start of the same
job writes its own name there, and the earlier one finds that out after its step, before it begins a checkpoint, and
before it gives one its name, and ends. What slips through, between that last look and the rename, is a whole checkpoint
of the same run.

Any other start is refused while the lock is held.
"""

import json
import secrets
from pathlib import Path
from typing import Any

from common.files import write_json
from pipeline.runtime.world import Launch


class Lost(OSError):
    """A later start of this job has taken the lease: nothing may be written any more."""


class Lease:
    """The lease in a run's folder, as one launch sees it; it is rank 0 that takes it and looks at it.

    token: tells this start from every other.
    """

    def __init__(self, run_dir: Path, *, launch: Launch) -> None:
        self.token = secrets.token_hex(4)
        self._path, self._launch = run_dir / "lease.json", launch

    @property
    def holder(self) -> Launch | None:
        """Who took it last; None if nobody did, or what is written there says nothing."""
        values = self._read()
        try:
            return Launch(job=values["job"], restart=values["restart"])
        except KeyError:
            return None

    def take(self) -> None:
        """Make it this launch's."""
        write_json(self._path, {"job": self._launch.job, "restart": self._launch.restart, "token": self.token})

    @property
    def is_mine(self) -> bool:
        """Whether nobody else has taken it since. The file is opened anew, which is when NFS asks the server."""
        return self._read().get("token") == self.token

    def check(self) -> None:
        """Do nothing if it is this launch's.

        Raises:
            Lost: it is not.
        """
        if not self.is_mine:
            raise Lost(f"{self.holder or 'another start'} has taken the run over")

    def _read(self) -> dict[str, Any]:
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return values if isinstance(values, dict) else {}
