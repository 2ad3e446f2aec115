"""TensorBoard's event files: their names, their records, and the events that begin one.

TensorBoard reads all files of a folder whose names contain "tfevents", in the order of their names. An event that
starts a session removes the points of its step and of later steps that were read before it. So each start of a run
writes a file of its own, begins it with such an event, and gives it a name that comes after all others. The number in
a name is the time in seconds, as usual, unless a file that is there already has a larger one: clocks of nodes differ.
"""

import io
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

USUAL = "events.out.tfevents"
_NUMBERED = re.compile(r"(?P<stem>.*?)\.(?P<number>[0-9]{10})(\..*)?", re.DOTALL)
_OURS = re.compile(r".*\.[0-9]{10}\..+\.[0-9]+", re.DOTALL)
_MOST = 10**10  # numbers have ten digits, so that their order is that of the texts


def new_event_file(folder: Path) -> Path:
    """Return a path for a new event file that TensorBoard reads after all that are in the folder, which is created.

    Raises:
        OSError: the folder cannot be created or read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    last = max(_names(folder), default=f"{USUAL}.{0:010d}")
    found = _NUMBERED.fullmatch(last)
    number = 0 if found is None else max(int(time.time()), int(found["number"]) + 1)
    if found is None or number >= _MOST:  # a name of another kind, which comes after all of the usual kind
        return folder / f"{last}.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    return folder / f"{found['stem']}.{number:010d}.{socket.gethostname()}.{os.getpid()}"


def foreign_files(folder: Path) -> list[str]:
    """Return the names that TensorBoard takes for event files, but that no start of a run has written."""
    try:
        return sorted(name for name in _names(folder) if not (_OURS.fullmatch(name) and (folder / name).is_file()))
    except OSError:
        return []


def beginning(first_step: int) -> Iterator[Any]:
    """Yield the events that begin a file whose points continue a run at `first_step`."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    yield Event(step=first_step, file_version="brain.Event:2")
    yield Event(step=first_step, session_log=SessionLog(status=SessionLog.START))


def record(event: Any) -> bytes:
    """Return an event, whose wall time is set to now, as a record of an event file."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    event.wall_time = time.time()
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()


def _names(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if "tfevents" in name]
