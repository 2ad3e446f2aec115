"""JSON lines, and JSON arrays of records, as they are or compressed.

A record is read in at most `MOST_RECORD_BYTES`, so memory is bounded whatever the file holds. What cannot become a
document yields a `Dropped`, which names the byte; byte offsets of records count the decompressed text, and those of
damage to an archive count the file.
"""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

from common.small_files import measured_lines
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.formats.archives import GZ, ZST, DamagedError, decompressed
from data_prep.sources.formats.opening import open_input
from data_prep.sources.records import (
    JSON_ARRAY,
    JSONL,
    MOST_LEVELS,
    MOST_RECORD_BYTES,
    Records,
    document_of_row,
    is_deep,
    too_deep_record,
    too_large_record,
    unreadable,
)

_CHUNK_BYTES = 1 << 16
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def read_json_records(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of a piece of JSON lines, or of a JSON array."""
    compression = next((suffix for suffix in (GZ, ZST) if piece.format.endswith(suffix)), None)
    read = _of_array if piece.format.startswith(JSON_ARRAY) else _of_lines
    try:
        with open_input(piece.path) as file:
            yield from read(file if compression is None else decompressed(file, compression), piece, options)
    except DamagedError as error:
        yield Dropped("corrupt_archive", piece.path, piece.size - error.position, str(error))
    except OSError as error:
        yield unreadable(piece, error)


def is_json_lines(file: IO[bytes], *, text_field: str) -> bool:
    """Return whether a file holds JSON lines: its first two lines are objects, or it is one object with a text."""
    lines = (line for line, _ in measured_lines(file, most_bytes=MOST_RECORD_BYTES) if line is None or line.strip())
    first, second = next(lines, None), next(lines, None)
    row = _object_in(first)
    if row is None:
        return False
    return text_field in row if second is None else _object_in(second) is not None


def is_json_array(file: IO[bytes], *, text_field: str) -> bool:
    """Return whether a file is a JSON array whose first element is an object with a text."""
    try:
        return text_field in (next(array_elements(file), (None, 0))[0] or {})
    except (BrokenArrayError, TypeError):
        return False


def _object_in(line: bytes | None) -> dict[str, Any] | None:
    try:
        value = json.loads(line or b"")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _of_lines(file: IO[bytes], piece: Piece, options: ReadOptions) -> Records:
    offset = _start_of_first_line(file, piece)
    for number, (line, n_bytes) in enumerate(measured_lines(file, most_bytes=MOST_RECORD_BYTES), start=1):
        if piece.format == JSONL and offset >= piece.stop:
            return
        if line is None or line.strip():
            where = f"{piece.path}:{number}" if piece.start == 0 else f"{piece.path}:byte {piece.start} + line {number}"
            yield _document_of_line(line, n_bytes, where, options, place=f"byte {offset}")
        offset += n_bytes


def _start_of_first_line(file: IO[bytes], piece: Piece) -> int:
    """Skip the line that began in the piece before; a line that does not end in this piece is skipped to its end."""
    if piece.start == 0:
        return 0
    file.seek(piece.start - 1)
    offset = piece.start - 1
    while offset < piece.stop and (data := file.readline(_CHUNK_BYTES)):
        offset += len(data)
        if data.endswith(b"\n"):
            return offset
    return piece.stop  # no line begins in this piece


def _document_of_line(
    line: bytes | None, n_bytes: int, source: str, options: ReadOptions, *, place: str
) -> Document | Dropped:
    if line is None:
        return too_large_record(source, n_bytes, place=place)
    try:
        row = json.loads(line)
    except RecursionError:
        return too_deep_record(source, n_bytes, place=place)
    except ValueError as error:  # UnicodeDecodeError is one
        return Dropped("bad_json", source, n_bytes, f"{place}: {error}"[:200])
    return document_of_row(row, source, options, input_bytes=n_bytes, place=place)


def _of_array(file: IO[bytes], piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of an array; what follows the first element that is not JSON is lost."""
    offset = 0
    try:
        for number, (row, n_bytes) in enumerate(array_elements(file), start=1):
            source = f"{piece.path}:{number}"
            yield document_of_row(row, source, options, input_bytes=n_bytes, place=f"byte {offset}")
            offset += n_bytes
    except BrokenArrayError as error:
        lost = 0 if piece.format.endswith((GZ, ZST)) else max(0, piece.size - offset)
        yield Dropped("bad_json", piece.path, lost, f"byte {offset}: {error}"[:200])


class BrokenArrayError(Exception):
    """A file is not a JSON array from here on."""


def array_elements(file: IO[bytes]) -> Iterator[tuple[Any, int]]:
    """Yield the elements of a JSON array, each with the bytes from the end of the one before to its own.

    Raises:
        BrokenArrayError: the file is not an array, or not from here on.
    """
    text = _JsonText(file)
    if text.next_character() != "[":
        raise BrokenArrayError("not an array")
    text.skip_character()
    while text.next_character() != "]":
        value = text.value()
        yield value, text.bytes_since_last()
        if text.next_character() == ",":
            text.skip_character()
        elif text.next_character() != "]":
            raise BrokenArrayError("an element is not followed by a comma")


class _JsonText:
    """The text of a file, of which only as much is in memory as the current value needs.

    A value is parsed again each time that more of it was read, which doubles what is there; so the whole effort stays
    proportional to the file. A byte that is not UTF-8 becomes a lone surrogate, and harms only its own record.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")(errors="surrogateescape")
        self._text, self._at, self._counted = "", 0, 0
        self._is_ended = False

    def next_character(self) -> str:
        """Return the next character that is not white space, without going past it; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._is_ended:
                return ""
            self._read()

    def skip_character(self) -> None:
        self._at += 1

    def value(self) -> Any:
        """Return the JSON value that begins here, and go past it."""
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._is_ended:  # a number at the end may go on
                    self._at = end
                    if is_deep(value):
                        raise RecursionError
                    return value
            except RecursionError as error:
                raise BrokenArrayError(f"more than {MOST_LEVELS} lists and objects within each other") from error
            except ValueError as error:
                if self._is_ended:
                    raise BrokenArrayError(str(error)) from error
            if len(self._text) - self._at > MOST_RECORD_BYTES:
                raise BrokenArrayError(f"no record ends within {MOST_RECORD_BYTES:,} bytes")
            self._read()

    def bytes_since_last(self) -> int:
        """Return how many bytes were passed since the last call."""
        passed = self._text[self._counted : self._at]
        self._counted = self._at
        return len(passed.encode("utf-8", errors="surrogateescape"))

    def _read(self) -> None:
        data = self._file.read(max(_CHUNK_BYTES, len(self._text) - self._at))
        self._is_ended = not data
        self._text = self._text[self._counted :] + self._decoder.decode(data, final=not data)
        self._at, self._counted = self._at - self._counted, 0
