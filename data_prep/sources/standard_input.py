"""Standard input as a source: jsonl that can be read once, and is kept in a file before anything else is done with it.

Workers, surveys and restarts read a part again, which a pipe does not allow. So it is copied to the work folder first,
whole or not at all. A run that was killed after that goes on with the file, and reads no standard input again; one that
was killed before has nothing, and reads it from the start. With the finished shards the file goes.
"""

import json
import sys
from pathlib import Path

from tqdm import tqdm

from common.command_line import UserError
from common.files import hold_lock, written_whole

STDIN = "-"
_KEPT = "stdin.jsonl"
_CHUNK_BYTES = 1 << 20


def kept_input(folder: Path, *, metadata: Path | None) -> tuple[str, int]:
    """Return the path and size of the file in `folder` that has all of standard input, reading it if need be.

    Args:
        folder: made if it is missing.
        metadata: of the finished output; where it is there, the size is that of then, and nothing is read.

    Raises:
        UserError: there is nothing on standard input, somebody else keeps it there, or it cannot be written.
    """
    path = folder / _KEPT
    if metadata is not None and metadata.is_file():
        return str(path), _size_then(metadata)
    try:
        if (
            not folder.exists()
            and folder.parent.exists()
            and {each.name for each in folder.parent.iterdir()} - {".lock"}
        ):
            raise UserError(
                f"{folder.parent} is not empty; standard input is kept in the output's folder: choose another"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if holder := hold_lock(folder / f"{_KEPT}.lock"):
            raise UserError(f"{holder} is reading standard input for {folder}; wait for it, or choose another output")
        if path.is_file():
            size = path.stat().st_size
            print(f"going on with the {size:,} bytes that an earlier run had from standard input; it is not read again")
            return str(path), size
        for left in folder.glob(f".{_KEPT}.partial-*"):  # by a run that was killed while it read
            left.unlink()
        return str(path), _keep(path)
    except OSError as error:
        raise UserError(f"cannot keep standard input in {folder}: {error.strerror}") from error


def _keep(path: Path) -> int:
    if sys.stdin is None or sys.stdin.isatty():
        what = "closed" if sys.stdin is None else "a terminal"
        raise UserError(f"input '-' is jsonl from standard input, which is {what}; pipe something into it")
    with (
        written_whole(path) as partial,
        partial.open("wb") as file,
        tqdm(desc="keeping standard input", unit="B", unit_scale=True, leave=False) as bar,
    ):
        while chunk := sys.stdin.buffer.read(_CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        if file.tell() == 0:
            raise UserError("input '-' is jsonl from standard input, which is empty")
    return path.stat().st_size


def _size_then(metadata: Path) -> int:
    sources = json.loads(metadata.read_text(encoding="utf-8")).get("sources", [])
    print("the output is finished already; standard input is not read, nor compared with what was read then")
    return next((source["bytes"] for source in sources if source["path"] == STDIN), 0)
