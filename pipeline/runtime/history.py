"""history.jsonl: when a run was launched, rolled back to a checkpoint, and ended. Lines are only ever appended.

metrics.jsonl cannot tell this, because each resume removes the steps that will run again. One line per event:

    {"event": "launch", "time": "2026-11-21T16:40:02+00:00", "step": 60, "ranks": 2, "device": "cpu"}
    {"event": "rollback", "time": "2026-11-21T16:55:31+00:00", "step": 130, "to_step": 100}
    {"event": "end", "time": "2026-11-21T16:58:12+00:00", "exit_code": 75}

A launch that was killed has no "end".
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Literal

from common.files import append_line
from pipeline.runtime.logs import logger

HISTORY = "history.jsonl"
Event = Literal["launch", "rollback", "end"]


def record(run_dir: Path, event: Event, **details: int | str) -> None:
    """Append an event, with the time, to the run's history; only rank 0 may call it. A failed write is a warning."""
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        append_line(run_dir / HISTORY, json.dumps({"event": event, "time": time, **details}))
    except OSError as error:
        logger.warning("could not write this %s to %s (%s)", event, run_dir / HISTORY, error.strerror)
