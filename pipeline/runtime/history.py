"""history.jsonl: when a run was launched, rolled back to a checkpoint, and ended. Lines are only ever appended.

metrics.jsonl cannot tell this, because each resume removes the steps that will run again. One line per event:

    {"event": "launch", "time": "2026-11-21T16:40:02+00:00", "step": 60, "ranks": 2, "device": "cpu",
     "changes": {"optim.lr": [0.0003, 0.001]}}
    {"event": "rollback", "time": "2026-11-21T16:55:31+00:00", "step": 130, "to_step": 100}
    {"event": "end", "time": "2026-11-21T16:58:12+00:00", "exit_code": 75}

A launch that was killed has no "end". "changes" has the fields of the recipe and the DeepSpeed JSON (`ds_config.`) that
are not as they were at the last launch, each with its old and its new value; config.yaml has only the new ones.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from common.files import append_line
from common.small_files import BadFileError, read_json, read_yaml
from pipeline.config.deepspeed_keys import rows
from pipeline.config.schema import Config
from pipeline.runtime.logs import logger

HISTORY = "history.jsonl"
Event = Literal["launch", "rollback", "end"]
Changes = dict[str, tuple[Any, Any]]


def changes_since_last_launch(run_dir: Path, *, config: Config, deepspeed_config: dict[str, Any]) -> Changes:
    """Return the fields that differ from those of the run's config.yaml and ds_config.json, with both values.

    A field that the file lacks had its default, since an earlier version may not have known it.

    Raises:
        BadFileError: one of the files is damaged or missing.
    """
    before = dict(_dotted(Config().as_dict()))
    before |= _dotted(read_yaml(run_dir / "config.yaml"))
    before |= _dotted(read_json(run_dir / "ds_config.json"), "ds_config.")
    now = dict(_dotted(config.as_dict())) | dict(_dotted(deepspeed_config, "ds_config."))
    of_recipe = {f"ds_config.{name}" for name, row in rows() if row.status == "recipe"}
    return {
        name: (before.get(name), now.get(name))
        for name in {**before, **now}
        if name not in of_recipe and before.get(name) != now.get(name)
    }


def _dotted(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested dicts with dotted names, as JSON has them."""
    if not isinstance(values, dict):
        raise BadFileError("its values are not in sections")
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.loads(json.dumps(value, default=str))


def record(run_dir: Path, event: Event, **details: int | str | Changes) -> None:
    """Append an event, with the time, to the run's history; only rank 0 may call it. A failed write is a warning."""
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        append_line(run_dir / HISTORY, json.dumps({"event": event, "time": time, **details}))
    except OSError as error:
        logger.warning("could not write this %s to %s: %s", event, run_dir / HISTORY, error.strerror)
