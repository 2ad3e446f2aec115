"""The folder of an evaluation: what is known about each completion so far, so that a killed run loses nothing.

    settings.json    everything that decides the completions and their results; one evaluation per folder
    samples.jsonl    one object per completion, in the order they were drawn
    results.jsonl    one object per executed completion, in the order they finished

A log only ever grows by whole lines. If a kill left part of a line at the end, it is cut off before the next write.
"""

import fcntl
import json
import os
from collections.abc import Collection, Container, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from common.command_line import UserError, raise_if_any
from common.files import json_text, write_json
from common.small_files import BadFileError, measured_lines, parse_json, read_json
from common.wording import shortened

SETTINGS = "settings.json"
_MOST_BYTES = 8 << 30


class CompletionId(NamedTuple):
    """Identity of a completion: its problem, its temperature, and its number there, from 0."""

    task_id: str
    temperature: float
    number: int


class CompletionLog:
    """A file of one line per completion, read into `entries` and extended by `add`; only one process may open it."""

    def __init__(self, path: Path, *, fields: Collection[str]) -> None:
        """Open or create the file, lock it, and read it.

        Args:
            path: the file.
            fields: the names of the texts that it holds of each completion, beside its identity.

        Raises:
            UserError: another process holds the file, it cannot be opened, or it has a line of something else.
        """
        self._path, self._fields = path, fields
        try:
            if path.exists() and not path.is_file():  # opening a FIFO would wait
                raise UserError(f"{path} cannot be written: it is not a file")
            self._file = path.open("a+b")
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path} is being written by another evaluation; wait for it, or stop it") from None
        except OSError:  # some network file systems have no locks
            pass
        self.entries = self._read()

    def add(self, rows: Iterable[tuple[CompletionId, dict[str, str]]]) -> None:
        """Append the fields of some completions.

        Raises:
            UserError: the disk is full, or the file cannot be written for another reason.
        """
        rows = list(rows)
        lines = "".join(json.dumps({**completion_id._asdict(), **fields}) + "\n" for completion_id, fields in rows)
        try:
            self._file.write(lines.encode())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}; free some space, and run the same command to"
                " continue"
            ) from error
        self.entries.update(rows)

    def refuse_others(self, known: Container[tuple[str, float, int]]) -> None:
        """Check that the file holds only known completions.

        Raises:
            UserError: names one that is not known.
        """
        for completion_id in self.entries:
            if completion_id not in known:
                raise UserError(
                    f"{self._path} holds {tuple(completion_id)}, which is no completion of this evaluation; give a new "
                    "folder as --output"
                )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(OSError):  # `add` has already reported what could not be written
            self._file.close()

    def _is_ours(self, row: Any) -> bool:
        """Return whether a row has the fields of a completion's identity, and the texts that this log holds."""
        return (
            isinstance(row, dict)
            and row.keys() == {*CompletionId._fields, *self._fields}
            and isinstance(row["task_id"], str)
            and isinstance(row["temperature"], int | float)
            and isinstance(row["number"], int)
            and all(isinstance(row[name], str) for name in self._fields)
        )

    def _read(self) -> dict[CompletionId, dict[str, str]]:
        """Return what the file holds, and cut off an unfinished last line.

        Raises:
            UserError: a line is not one that `add` writes.
        """
        if os.fstat(self._file.fileno()).st_size > _MOST_BYTES:
            raise UserError(f"{self._path} cannot be read: it has more than {_MOST_BYTES:,} bytes")
        self._file.seek(0)
        entries, n_whole = {}, 0
        for number, (line, n_bytes) in enumerate(measured_lines(self._file), start=1):
            if line is not None and not line.endswith(b"\n"):
                self._file.truncate(n_whole)
                break
            n_whole += n_bytes
            completion_id, fields = self._entry(line, name=f"{self._path}: line {number}")
            entries[completion_id] = fields
        return entries

    def _entry(self, line: bytes | None, *, name: str) -> tuple[CompletionId, dict[str, str]]:
        """Return the completion of a line, and its texts; None stands for a line that is too long.

        Raises:
            UserError: it is not a line that `add` writes.
        """
        wrong = f"{name} was not written by an evaluation"
        if line is None:
            raise UserError(f"{wrong}: it is too long")
        try:
            row = parse_json(line, name=name)
        except BadFileError as error:
            raise UserError(f"{wrong}: {error}") from error
        if not self._is_ours(row):
            raise UserError(wrong)
        return CompletionId(*(row.pop(name) for name in CompletionId._fields)), row


def open_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Create an evaluation's folder, or check that an existing one has the same settings.

    Raises:
        UserError: the folder has other settings, holds something else, or cannot be created.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
        if not names:
            write_json(path, settings)
            return
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written: {error.strerror}") from error
    if SETTINGS not in names:
        raise UserError(f"--output {folder} holds {names[0]!r}, but no evaluation; give a new folder")
    try:
        earlier = read_json(path)
    except BadFileError as error:
        raise UserError(f"{error}; give a new folder as --output") from error
    if not isinstance(earlier, dict):
        raise UserError(f"{path} does not hold the settings of an evaluation; give a new folder as --output")
    now = json.loads(json_text(settings))  # so that both sides are as they were written
    different = [
        f"{name} was {_shown(earlier.get(name))}, and is now {_shown(now.get(name))}"
        for name in {**earlier, **now}
        if earlier.get(name) != now.get(name)
    ]
    raise_if_any(different, heading=f"--output {folder} holds an evaluation with other settings; give another folder")


def _shown(value: Any) -> str:
    return shortened(repr(value), most=200)
