"""The readers, one for each format: from a piece to its documents.

No reader raises because of a file's content. Input that cannot become a document yields a `Dropped`, which names the
byte. The documents before the damage in a file are kept; in Parquet, those after the damaged row group too.

To add a format, add an entry to `_READERS` here, and its name to `records` and `listing`.
"""

import functools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import zstandard

from common.command_line import UserError
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.records import DATASET, FILE, JSONL, JSONL_GZ, JSONL_ZST, PARQUET, Records, document_of_row

_CHUNK_BYTES = 1 << 15  # small, so that little is lost before damage, and its place is named exactly


class BadInputError(UserError):
    """Some input is not a document, and the options say to end the run then."""


class _DamagedError(Exception):
    """An archive cannot be read any further; the message says where and why."""


def read_piece(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of one piece in order, and a `Dropped` for each part of it that is not a document.

    Raises:
        BadInputError: for the first `Dropped`, if `options` refuse bad input.
    """
    records = _READERS[piece.format](piece, options)
    return records if options.bad_input == "count" else _refusing(records)


def _refusing(records: Records) -> Records:
    for record in records:
        if isinstance(record, Dropped):
            raise BadInputError(
                f"{record.source}: {record.reason} ({record.detail}); repair the file, or omit --strict to count such"
                " input and continue"
            )
        yield record


def _read_file(piece: Piece, options: ReadOptions) -> Records:
    """Yield a whole file as one document; line ends and a byte order mark stay as they are."""
    try:
        with open(piece.path, "rb", buffering=0) as file:  # faster than Path, which matters for many small files
            data = file.readall()
    except OSError as error:
        yield _unreadable(piece, error)
        return
    if options.files_as == "bytes":
        yield Document(data.decode("utf-8", errors="surrogateescape"), data, piece.path, piece.size)
        return
    if b"\0" in data:
        yield Dropped("binary", piece.path, piece.size, f"byte {data.index(0)}: NUL")
        return
    try:
        yield Document(data.decode("utf-8"), data, piece.path, piece.size)
    except UnicodeDecodeError as error:
        yield Dropped("not_utf8", piece.path, piece.size, f"byte {error.start}: {error.reason}")


def _unreadable(piece: Piece, error: OSError) -> Dropped:
    return Dropped("unreadable", piece.path, piece.size, f"byte {piece.start}: {error.strerror or error}")


def _read_jsonl(piece: Piece, options: ReadOptions) -> Records:
    try:
        with Path(piece.path).open("rb") as file:
            if piece.start > 0:
                file.seek(piece.start - 1)
                file.readline()  # the rest of a line that started in the previous piece
            yield from _documents_of_lines(_lines_until(piece.stop, file), piece, options, offset=file.tell())
    except OSError as error:
        yield _unreadable(piece, error)


def _lines_until(stop: int, file: IO[bytes]) -> Iterator[bytes]:
    position = file.tell()
    while position < stop and (line := file.readline()):
        yield line
        position += len(line)


def _read_compressed_jsonl(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of an archive.

    Byte offsets of lines count the decompressed text; the offset of damage counts the file.
    """
    try:
        with open(piece.path, "rb", buffering=0) as file:
            lines = _lines_of_chunks(_decompressed(file, piece.format))
            yield from _documents_of_lines(lines, piece, options, offset=0)
    except _DamagedError as error:
        yield Dropped("corrupt_archive", piece.path, 0, str(error))
    except OSError as error:
        yield _unreadable(piece, error)


def _decompressed(file: IO[bytes], format_: str) -> Iterator[bytes]:
    """Yield the decompressed content of every gzip member or zstd frame in a file; corpora often have many.

    Zstd windows may have up to 2 GiB.

    Raises:
        _DamagedError: the file is not an archive of this format, or it ends within a frame. (The libraries' own streams
            do not report the latter for zstd.)
    """
    frame: Any = None
    offset = 0
    if format_ == JSONL_GZ:
        new_frame: Callable[[], Any] = functools.partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS)
    else:
        new_frame = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    while data := file.read(_CHUNK_BYTES):
        offset += len(data)
        while data:
            if frame is None and format_ == JSONL_GZ and not (data := data.lstrip(b"\0")):
                break  # an archive may be padded with zeros
            frame = frame or new_frame()
            try:
                chunk = frame.decompress(data)
            except (zlib.error, zstandard.ZstdError) as error:
                raise _DamagedError(f"after byte {offset - len(data)}: {error}") from error
            if chunk:
                yield chunk
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None or offset == 0:  # even an archive of nothing is not an empty file
        raise _DamagedError(f"byte {offset}: the file ends too early")


def _lines_of_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    parts: list[bytes] = []  # the chunks of an unfinished line, which are joined only once
    for chunk in chunks:
        start = 0
        while end := chunk.find(b"\n", start) + 1:
            parts.append(chunk[start:end])
            yield b"".join(parts)
            parts = []
            start = end
        parts.append(chunk[start:])
    yield b"".join(parts)


def _documents_of_lines(lines: Iterable[bytes], piece: Piece, options: ReadOptions, *, offset: int) -> Records:
    for number, line in enumerate(lines, start=1):
        if line.strip():
            where = f"{piece.path}:{number}" if piece.start == 0 else f"{piece.path}:byte {piece.start} + line {number}"
            yield _document_of_line(line, where, options, offset=offset)
        offset += len(line)


def _document_of_line(line: bytes, source: str, options: ReadOptions, *, offset: int) -> Document | Dropped:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        return Dropped("bad_json", source, len(line), f"byte {offset}: {error}"[:200])
    return document_of_row(row, source, options, input_bytes=len(line), place=f"byte {offset}")


def _read_parquet(piece: Piece, options: ReadOptions) -> Records:
    from data_prep.sources.parquet import read_row_groups  # late, because pyarrow is slow to import

    return read_row_groups(piece, options)


def _read_dataset(piece: Piece, options: ReadOptions) -> Records:
    from data_prep.sources.huggingface import read_shards  # late, because datasets takes seconds to import

    return read_shards(piece, options)


_READERS: dict[str, Callable[[Piece, ReadOptions], Records]] = {
    FILE: _read_file,
    JSONL: _read_jsonl,
    JSONL_GZ: _read_compressed_jsonl,
    JSONL_ZST: _read_compressed_jsonl,
    PARQUET: _read_parquet,
    DATASET: _read_dataset,
}
