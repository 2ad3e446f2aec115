"""Standard input as a source: JSON records, which are copied to a file before anything else is done with them.

Workers, surveys and restarts read a part again, which a pipe does not allow. So all of standard input is first copied
to the work folder. A run that is killed later continues with this copy, and does not read standard input again. A run
that is killed during the copy leaves no copy, and the next one reads standard input from the start. The copy is removed
when the shards are finished.
"""

import os
import sys
from pathlib import Path

from tqdm import tqdm

from common.command_line import UserError, say
from common.files import hold_lock, written_whole
from common.small_files import read_json

STDIN = "-"
_COPY = "stdin.jsonl"
_LOCK = ".lock"  # added to the name of the copy
_CHUNK_BYTES = 1 << 20


def copied_input(folder: Path, *, metadata: Path | None) -> tuple[str, int]:
    """Return the path and size of the copy of standard input in `folder`; make the copy if there is none.

    Args:
        folder: where the copy lies; created if it is missing.
        metadata: path of the finished output's metadata.json. If it exists, nothing is read, and the size is the one
            that it records.

    Raises:
        UserError: standard input is empty, another process is copying to this folder, or the copy cannot be written.
    """
    path = folder / _COPY
    if metadata is not None and metadata.is_file():
        return str(path), _size_then(metadata)
    try:
        if (
            not folder.exists()
            and folder.parent.exists()
            and {each.name for each in folder.parent.iterdir()} - {".lock"}
        ):
            raise UserError(
                f"{folder.parent} is not empty; standard input is copied to the output folder: choose an empty one"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if holder := hold_lock(folder / f"{_COPY}{_LOCK}"):
            raise UserError(f"{holder} is copying standard input to {folder}; wait for it, or choose another output")
        if path.is_file():
            size = path.stat().st_size
            say(f"continuing with the {size:,} bytes that an earlier run read; standard input is not read again")
            return str(path), size
        for left in folder.glob(f".{_COPY}.partial-*"):  # of a run that was killed during the copy
            left.unlink()
        return str(path), _copy_to(path)
    except OSError as error:
        raise UserError(f"cannot copy standard input to {folder}: {error.strerror}") from error


def is_copied_input(path: str) -> bool:
    """Return whether a file is a copy of standard input, which nobody changes."""
    return os.path.basename(path) == _COPY and os.path.exists(f"{path}{_LOCK}")


def _copy_to(path: Path) -> int:
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UserError(f"input '-' is jsonl from standard input, which is {what}; pipe something into it")
    with (
        written_whole(path) as partial,
        partial.open("wb") as file,
        tqdm(desc="copying standard input", unit="B", unit_scale=True, leave=False) as bar,
    ):
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        if file.tell() == 0:
            raise UserError("input '-' is jsonl from standard input, which is empty")
    return path.stat().st_size


def _size_then(metadata: Path) -> int:
    found = read_json(metadata)
    sources = found.get("sources") if isinstance(found, dict) else None
    print("the output is finished already; standard input is neither read nor compared with the input of that run")
    for source in sources if isinstance(sources, list) else ():
        if isinstance(source, dict) and source.get("path") == STDIN and isinstance(source.get("bytes"), int):
            return int(source["bytes"])
    return 0
