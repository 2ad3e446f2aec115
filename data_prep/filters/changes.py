"""Input that changes between its readings: the time and the content of each piece, kept beside what was made of it.

The size of a file tells little, and its time is another one wherever it was copied. So a piece is compared by its
content if the time of its file differs from the recorded one. Its content is a hash of the records that were read, as
far as they matter: texts, the wanted fields, and what was dropped. It is computed while the piece is read anyway.

A file may change within the resolution of its time. So the time of a file that was changed just before it was read is
not recorded, and its pieces are always compared by content.
"""

import os
import time
import tokenize
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from common.command_line import UserError, say
from common.files import written_whole
from common.small_files import open_regular_file
from common.wording import counted
from data_prep.filters.digests import digest
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.formats.opening import is_url
from data_prep.sources.readers import read_piece
from data_prep.sources.records import DATASET
from data_prep.sources.standard_input import is_copied_input

UNKNOWN, FIXED = 0, 1
"""Times of a file that was changed a moment ago, and of input that only its fingerprint, or nothing, can change."""
DAMAGED_ARRAY = (ValueError, EOFError, SyntaxError, tokenize.TokenError)
"""What numpy raises for a file of an array that is damaged; it parses the header as Python."""
_RESOLUTION_NS = 2_000_000_000  # of the times of the coarsest file systems


class ChangedInputError(UserError):
    """Input has changed since it was read before."""


class ContentHash:
    """Hashes the records of one piece.

    Args:
        reading: how the piece is read; of a record, the text and `reading.fields` count.
    """

    def __init__(self, reading: ReadOptions) -> None:
        self._reading = reading
        self._hash = xxhash.xxh3_64()
        self.n_records = 0

    def add(self, record: Document | Dropped) -> None:
        """Add the next record."""
        self.n_records += 1
        if isinstance(record, Document):
            self._hash.update(digest(record.utf8))
            rest: list[Any] = self._fields_of(record)
        else:
            rest = [record.reason, record.input_bytes, record.documents]
        self._hash.update(repr(rest).encode("utf-8", errors="surrogatepass") if rest else b"-")

    def value(self) -> int:
        """Return the hash of the records so far."""
        return self._hash.intdigest()

    def _fields_of(self, document: Document) -> list[Any]:
        if self._reading.fields is not None:
            return [document.row.get(name) for name in self._reading.fields] if document.row else []
        return [value for name, value in document.row.items() if name != self._reading.text_field]


def content_of(piece: Piece, reading: ReadOptions) -> int:
    """Read a piece, and return the hash of its records."""
    content = ContentHash(reading)
    for record in read_piece(piece, replace(reading, bad_input="count")):
        content.add(record)
    return content.value()


def times_of(pieces: Sequence[Piece]) -> list[int]:
    """Return the modification time of each piece's file in ns, or one of the values above. To be called before reading.

    A file that is missing has the time `UNKNOWN`.
    """
    latest = time.time_ns() - _RESOLUTION_NS
    known = {path: _time_of(format_, path) for format_, path in {(piece.format, piece.path) for piece in pieces}}
    return [known[piece.path] if known[piece.path] <= latest else UNKNOWN for piece in pieces]


def _time_of(format_: str, path: str) -> int:
    if format_ == DATASET:
        from data_prep.sources.huggingface.data_sets import local_files  # late, because datasets takes seconds

        return max((_time_of("", file) for file in local_files(path)), default=FIXED)
    if is_url(path) or is_copied_input(path):
        return FIXED
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return UNKNOWN


def say_finished(out: object, last: Path, pieces: Iterable[Piece]) -> None:
    """Print that an output is finished already, and whether input has changed since.

    Args:
        out: the output, for the message.
        last: the file that was written last, on this machine; nothing is compared if it is missing.
        pieces: all pieces of the input.
    """
    say(f"{out} is already finished, with the same arguments; nothing to do")
    finished_ns = last.stat().st_mtime_ns if last.exists() else 1 << 63
    files = {(piece.format, piece.path) for piece in pieces}
    newer = {path for format_, path in files if _time_of(format_, path) > finished_ns}
    if newer:
        say(
            f"warning: {counted(len(newer), 'file')} of the input changed since it was finished, such as {min(newer)};"
            " to write the input as it is now, choose another --out"
        )


def save_fingerprints(path: Path, *, times: Sequence[int], contents: Sequence[int]) -> None:
    """Write the times and contents of the pieces of a part, whole or not at all."""
    with written_whole(path) as partial, partial.open("wb") as file:
        np.save(file, np.array([times, contents], dtype=np.uint64))


class Fingerprints:
    """The times and contents of a part's pieces, read from a file of `save_fingerprints`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged.
    """

    def __init__(self, path: Path, pieces: Sequence[Piece]) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            with open_regular_file(path, name=path) as file:
                saved = np.load(file, allow_pickle=False)
            if saved.shape != (2, len(pieces)) or saved.dtype != np.uint64:
                raise ValueError(f"it does not describe {len(pieces)} pieces")
        except DAMAGED_ARRAY as error:
            raise UserError(f"{path} is damaged: {error}; delete it, and run the same command again") from error
        self._pieces, self._times, self._contents = pieces, saved[0].tolist(), saved[1].tolist()

    def in_doubt(self, now: Sequence[int]) -> list[int]:
        """Return the indices of the pieces whose file has, by its time `now`, perhaps changed."""
        return [i for i, then in enumerate(self._times) if then == UNKNOWN or then != now[i]]

    def first_changed(self, indices: Sequence[int], reading: ReadOptions) -> Piece | None:
        """Read pieces again, and return the first whose content differs."""
        for i in indices:
            if content_of(self._pieces[i], reading) != self._contents[i]:
                return self._pieces[i]
        return None
