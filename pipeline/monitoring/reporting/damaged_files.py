"""Reads files that may be missing or damaged. Whatever cannot be read is described in `problems`, a sentence each."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from common.wording import counted
from pipeline.runtime.metrics_lines import json_object


def read_json_object(path: Path, problems: list[str]) -> dict[str, Any]:
    """Return the object in a JSON file, or an empty one if there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{path.name} is missing")
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
    else:
        if isinstance(value, dict):
            return value
        problems.append(f"{path.name} does not contain a JSON object")
    return {}


def objects(path: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON object on each line of a file; all other lines together make one problem."""
    n_bad, is_whole = 0, True
    for line in lines(path, problems):
        is_whole = line.endswith("\n")
        if (value := json_object(line)) is not None:
            yield value
        elif is_whole:
            n_bad += 1
        else:
            problems.append(f"{path.name}: the last line is cut short and left out")
    if n_bad:
        verb = "is not a JSON object and is" if n_bad == 1 else "are not JSON objects and are"
        problems.append(f"{path.name}: {counted(n_bad, 'line')} {verb} left out")


def lines(path: Path, problems: list[str]) -> Iterator[str]:
    """Yield the lines of a file, with a progress bar if that takes long; nothing if the file does not exist."""
    try:
        with (
            path.open(encoding="utf-8", errors="replace", newline="\n") as file,
            tqdm(
                total=os.fstat(file.fileno()).st_size, unit="B", unit_scale=True, desc=path.name, delay=1, disable=None,
                leave=False,
            ) as bar,
        ):  # fmt: skip
            for line in file:
                bar.update(len(line))
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({error.strerror})")
