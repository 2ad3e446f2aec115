"""history.jsonl: when a run was launched, went back to a checkpoint and ended. Lines are only ever added.

metrics.jsonl cannot tell, since each resume drops from it the steps that come again. A line per event:

    {"event": "launch", "time": "2026-11-21T16:40:02+00:00", "step": 60, "ranks": 2, "device": "cpu"}
    {"event": "rollback", "time": "2026-11-21T16:55:31+00:00", "step": 130, "to_step": 100}
    {"event": "end", "time": "2026-11-21T16:58:12+00:00", "exit_code": 75}

A launch that was killed has no end.
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
    """Append an event, with the time, to the run's history; for rank 0 alone. A file that refuses it ends no run."""
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        append_line(run_dir / HISTORY, json.dumps({"event": event, "time": time, **details}))
    except OSError as error:
        logger.warning("%s misses this %s (%s)", run_dir / HISTORY, event, error.strerror)
