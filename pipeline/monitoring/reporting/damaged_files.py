"""Reads files that may be missing or damaged. Whatever cannot be read is described in `problems`, a sentence each."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.small_files import BadFileError, parse_json, read_lines, read_small_file
from common.wording import counted
from pipeline.runtime.metrics_lines import MOST_LINE_BYTES, json_object

MOST_BYTES = 1 << 30  # of a file of lines; what follows is left out


def read_json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is none."""
    if not path.exists():
        problems.append(f"{path.name} is missing")
        return {}
    try:
        value = parse_json(read_small_file(path), name=path.name)
    except BadFileError as error:
        problems.append(str(error))
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} does not contain a JSON object")
        return {}
    return value


def objects(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object on each line of a file; all other lines together make one problem."""
    n_bad, is_whole = 0, True
    for line in lines(path, problems):
        is_whole = line is None or line.endswith(b"\n")
        if line is not None and (value := json_object(line)) is not None:
            yield value
        elif is_whole:
            n_bad += 1
        else:
            problems.append(f"{path.name}: the last line is cut short and left out")
    if n_bad:
        verb = "is not a JSON object and is" if n_bad == 1 else "are not JSON objects and are"
        problems.append(f"{path.name}: {counted(n_bad, 'line')} {verb} left out")


def lines(path: Path, problems: list[str]) -> Iterator[bytes | None]:
    """Yield the lines of a file, with a progress bar if that takes long; nothing if the file does not exist.

    None stands for a line that is too long.
    """
    if not path.exists():
        return
    n_read = 0
    try:
        size = min(path.stat().st_size, MOST_BYTES)
        with tqdm(total=size, unit="B", unit_scale=True, desc=path.name, delay=1, disable=None, leave=False) as bar:
            for line in read_lines(path, most_bytes=MOST_LINE_BYTES):
                length = MOST_LINE_BYTES if line is None else len(line)
                n_read += length
                if n_read > MOST_BYTES:
                    problems.append(f"{path.name}: only the first {MOST_BYTES:,} bytes are read")
                    return
                bar.update(length)
                yield line
    except BadFileError as error:
        problems.append(str(error))
