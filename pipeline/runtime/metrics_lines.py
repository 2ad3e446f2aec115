"""Readers of metrics.jsonl: one JSON object per logged step.

The last line may be cut short by a kill, and any line may be damaged by a disk that lost power. Such lines are skipped.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def json_object(line: str) -> dict[str, Any] | None:
    """Return the JSON object on a line, or None if the line holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def metrics_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each whole line of a metrics.jsonl, its newline included, and its object, which has an integer "step".

    Yields nothing if the file does not exist.
    """
    return _whole(_lines(path))


def last_step(path: Path) -> int:
    """Return the step of the last whole line of a metrics.jsonl; 0 if there is none."""
    return next((values["step"] for _, values in _whole(reversed(_lines(path)))), 0)


def _lines(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return text.splitlines(keepends=True)


def _whole(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines:
        values = json_object(line) if line.endswith("\n") else None
        if values is not None and isinstance(values.get("step"), int):
            yield line, values
