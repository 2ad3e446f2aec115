"""An evaluation's folder: what is known of each sample so far, kept so that a killed run loses nothing of it.

    settings.json    what decides the samples and their results; a folder holds those of one evaluation only
    samples.jsonl    one object per completion, as they come
    results.jsonl    one object per executed completion, as they come

A file only ever grows by whole lines. What a kill left of a last line is cut off before the next one is written.
"""

import fcntl
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from common.command_line import UserError, raise_if_any
from common.files import write_json

SETTINGS = "settings.json"


class SampleId(NamedTuple):
    """Which sample of a problem at a temperature, from 0 up."""

    task_id: str
    temperature: float
    number: int


class SampleLog:
    """What a file says of each sample, and the way to say more; one process at a time holds it."""

    def __init__(self, path: Path) -> None:
        """Open or create the file, and read it.

        Raises:
            UserError: another process holds it, it cannot be opened, or something else was written into it.
        """
        self._path = path
        try:
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being written by another evaluation; wait for it, or stop it") from None
        except OSError:  # some network file systems have no locks
            pass
        self.entries = self._read()

    def add(self, rows: Iterable[tuple[SampleId, dict[str, str]]]) -> None:
        """Append what is now known of some samples.

        Raises:
            UserError: the disk is full, or will not take it for another reason.
        """
        rows = list(rows)
        lines = "".join(json.dumps({**sample._asdict(), **fields}) + "\n" for sample, fields in rows)
        try:
            self._file.write(lines.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written ({error.strerror}); make room, and the same command continues"
            ) from error
        self.entries.update(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # what add could not write, it has told
            self._file.close()

    def _read(self) -> dict[SampleId, dict[str, str]]:
        """Return what whole lines say, and cut off the rest."""
        self._file.seek(0)
        contents = self._file.read()
        whole = contents[: contents.rfind(b"\n") + 1]
        if len(whole) < len(contents):
            self._file.truncate(len(whole))
        entries = {}
        for number, line in enumerate(whole.split(b"\n")[:-1], start=1):
            try:
                row = json.loads(line)
                sample = SampleId(*(row.pop(name) for name in SampleId._fields))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{self._path}: line {number} is not one that an evaluation writes") from error
            entries[sample] = row
        return entries


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Make an evaluation's folder, or check that the one which is there has the same settings.

    Raises:
        UserError: it has others, it holds something else, or it cannot be made.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
        if not names:
            write_json(path, settings)
            return
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror})") from error
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"--output {folder} holds {names[0]!r}, but no evaluation; give a new folder") from None
    except ValueError as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error
    now = json.loads(json.dumps(settings))  # as they read once written
    different = [
        f"{name} was {earlier.get(name)!r}, and is now {now.get(name)!r}"
        for name in {**earlier, **now}
        if earlier.get(name) != now.get(name)
    ]
    raise_if_any(different, heading=f"--output {folder} holds an evaluation with other settings; give another folder")
