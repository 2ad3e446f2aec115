"""The reader of metrics.jsonl and of other files with one JSON object on each line.

The last line may be cut short by a kill, and any line may be damaged by a disk that lost power, or be written by
something else. Such lines are skipped. Nothing that a file holds needs more than the memory of one line.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.small_files import BadFileError, parse_json, read_lines

METRICS = "metrics.jsonl"
MOST_LINE_BYTES = 1 << 20
_STEPS = range(1 << 62)


def json_object(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object on a line, or None if the line holds none; its numbers may be NaN or infinite."""
    try:
        value = parse_json(line, name="the line", finite=False)
    except BadFileError:
        return None
    return value if isinstance(value, dict) else None


def is_step(value: Any) -> bool:
    """Return whether a value can be the number of a step."""
    return type(value) is int and value in _STEPS


def metrics_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each whole line of a metrics.jsonl, its newline included, and its object, which has a "step".

    Yields nothing if the file does not exist.

    Raises:
        BadFileError: the file cannot be read, or is none.
    """
    if not path.exists():
        return
    for line in read_lines(path, most_bytes=MOST_LINE_BYTES):
        values = json_object(line) if line is not None and line.endswith(b"\n") else None
        if values is not None and is_step(values.get("step")):
            yield line, values  # type: ignore[misc]


def last_step(path: Path) -> int:
    """Return the step of the last whole line of a metrics.jsonl; 0 if there is none, or the file cannot be read."""
    step = 0
    try:
        for _, values in metrics_lines(path):
            step = values["step"]
    except BadFileError:
        pass
    return step
