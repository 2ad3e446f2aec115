"""Parquet files, as in The Stack and StarCoderData: a row is a document, and a piece is a range of row groups.

Only the columns in the options are read, a few rows at a time, and a column's pages only when they are needed. So
memory does not grow with the size of files or row groups. Pages are measured before they are decompressed
(`parquet_layout`), and as no value is larger than its page, their sizes say how many rows are read at once.
"""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.formats.opening import is_url, open_input
from data_prep.sources.formats.parquet_layout import Chunk, RowGroup, page_bytes, row_groups_of
from data_prep.sources.records import (
    MOST_RECORD_BYTES,
    PARQUET,
    TOO_LARGE,
    WHOLE,
    Records,
    document_of_row,
    no_text_field,
    too_large_record,
)

_MOST_ROWS_AT_ONCE = 128  # a row may be a whole source file
_MOST_BYTES_AT_ONCE = 128 << 20
_MOST_PAGE_BYTES = 2 * MOST_RECORD_BYTES  # writers end a page soon after it has 1 MiB
_BUFFER_BYTES = 1 << 20
_ERRORS = (pa.ArrowException, OSError, ValueError)  # raised for damaged pages, depending on the layer
CORRUPT = "corrupt_parquet"


class _LargePageError(Exception):
    """A page of a row group is too large to be decompressed; the message says how large."""


def cut_row_groups(path: str, *, size: int, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    """Yield the pieces of a file of `size` bytes; all but the last have at least `piece_bytes`.

    A file that cannot be read is one piece without row groups; reading it gives the reason.
    """
    try:
        with open_input(path) as file:
            groups = row_groups_of(file)
    except (OSError, ValueError):
        groups = []
    ends = [0, *itertools.accumulate(group.decompressed_bytes for group in groups)]
    start = start_byte = 0
    for stop in range(1, len(groups) + 1):
        stop_byte = size * ends[stop] // max(1, ends[-1]) if stop < len(groups) else size
        if stop_byte - start_byte >= piece_bytes or stop == len(groups):
            yield Piece(PARQUET, path, start, stop, stop_byte - start_byte, selection)
            start, start_byte = stop, stop_byte
    if not groups:
        yield Piece(PARQUET, path, 0, 0, size, selection)


def read_row_groups(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of a piece. The piece's bytes are divided evenly among its rows."""
    try:
        opened = open_input(piece.path)
    except OSError as error:
        yield Dropped("unreadable", piece.path, piece.size, f"byte 0: {error}"[:200])
        return
    with opened:
        try:
            groups = list(_groups_of(row_groups_of(opened), piece))
            source = pa.PythonFile(opened, mode="r") if is_url(piece.path) else pa.OSFile(piece.path)
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            names = list(file.schema_arrow.names)
        except _ERRORS as error:
            where = f"byte {piece.size}"  # the metadata of a file are at its end
            yield Dropped(CORRUPT, piece.path, piece.size, f"{where}: {error}"[:200])
            return
        for group in groups:
            if options.text_field in names:
                yield from _read_group(file, group, opened, options)
            elif group.n_rows:
                yield no_text_field(
                    names, group.source(0), options,
                    input_bytes=group.n_bytes, place=group.place, documents=group.n_rows,
                )  # fmt: skip


@dataclass(frozen=True)
class _Group:
    """A row group of a piece; `first_row` counts the rows of the file, and `n_bytes` are its bytes of the piece."""

    path: str
    index: int
    chunks: tuple[Chunk, ...]
    first_row: int
    n_rows: int
    n_bytes: int

    @property
    def place(self) -> str:
        return f"row group {self.index}, from byte {self.chunks[0].start if self.chunks else 0}"

    def source(self, row: int) -> str:
        return f"{self.path}:row {self.first_row + row}"

    def bytes_of(self, start: int, stop: int) -> int:
        """Return the share of the bytes of the rows `start` to `stop`."""
        return self.n_bytes * stop // max(1, self.n_rows) - self.n_bytes * start // max(1, self.n_rows)


def _groups_of(groups: Sequence[RowGroup], piece: Piece) -> Iterator[_Group]:
    stop = len(groups) if piece.stop == WHOLE else piece.stop
    if stop > len(groups):
        raise ValueError(f"{len(groups)} row groups, not the {stop} that were listed")
    ends = [0, *itertools.accumulate(group.n_rows for group in groups[:stop])]
    first, n_all = ends[piece.start], max(1, ends[stop] - ends[piece.start])
    for index in range(piece.start, stop):
        start_byte, stop_byte = (piece.size * (end - first) // n_all for end in (ends[index], ends[index + 1]))
        group = groups[index]
        yield _Group(piece.path, index, group.chunks, ends[index], group.n_rows, stop_byte - start_byte)


def _read_group(file: pq.ParquetFile, group: _Group, opened: IO[bytes], options: ReadOptions) -> Records:
    n_read = 0
    try:
        for row in _rows(file, group, opened, options):
            n_bytes = group.bytes_of(n_read, n_read + 1)
            n_read += 1
            yield _document(row, group.source(n_read - 1), options, input_bytes=n_bytes, place=group.place)
    except (_LargePageError, *_ERRORS) as error:
        reason = TOO_LARGE if isinstance(error, _LargePageError) else CORRUPT
        n_bytes, n_lost = group.bytes_of(n_read, max(n_read, group.n_rows)), max(1, group.n_rows - n_read)
        yield Dropped(reason, group.source(n_read), n_bytes, f"{group.place}: {error}"[:200], n_lost)


def _document(row: dict[str, Any], source: str, options: ReadOptions, **place: Any) -> Document | Dropped:
    text = row[options.text_field]
    if isinstance(text, str | bytes) and len(text) > MOST_RECORD_BYTES:
        return too_large_record(source, place["input_bytes"], place=place["place"])
    return document_of_row(row, source, options, **place)


def _rows(file: pq.ParquetFile, group: _Group, opened: IO[bytes], options: ReadOptions) -> Iterator[dict[str, Any]]:
    """Yield the rows of a row group, with the columns in the options.

    Strings of the text column become bytes, so that each is checked by itself when it is decoded.
    """
    names = file.schema_arrow.names
    if options.fields is not None:
        names = [name for name in names if name in (options.text_field, *options.fields)]
    rows_at_once = _rows_at_once(group, names, opened)
    for batch in file.iter_batches(rows_at_once, row_groups=[group.index], columns=names, use_threads=False):
        columns = [
            _bytes_of(column) if name == options.text_field else _values_of(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _rows_at_once(group: _Group, names: list[str], opened: IO[bytes]) -> int:
    """Return how many rows may be in memory together, which is few if a page of the columns is large.

    Raises:
        _LargePageError: a page is too large.
        ValueError: the metadata of a column, or the header of a page, are damaged.
    """
    wanted = [chunk for chunk in group.chunks if any(f"{chunk.path}.".startswith(f"{name}.") for name in names)]
    largest = max((_largest_page(chunk, opened, path=group.path) for chunk in wanted), default=0)
    if largest > _MOST_PAGE_BYTES:
        raise _LargePageError(f"a page has {largest:,} bytes; {_MOST_PAGE_BYTES:,} is the most")
    return max(1, min(_MOST_ROWS_AT_ONCE, _MOST_BYTES_AT_ONCE // max(1, largest)))


def _largest_page(chunk: Chunk, opened: IO[bytes], *, path: str) -> int:
    """Return the size of the largest page of a column; of a distant one, what it may have at most."""
    if is_url(path) and not chunk.problem:  # reading each header would take a request
        return min(chunk.decompressed_bytes, _MOST_PAGE_BYTES)
    return max(page_bytes(opened, chunk), default=0)


def _bytes_of(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _values_of(column: pa.Array) -> list[Any]:
    """Return the values of a column beside the text; those that Python cannot hold, such as the year 14645, as text."""
    try:
        return column.to_pylist()
    except (*_ERRORS, OverflowError):
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    for as_held in (lambda: scalar, lambda: scalar.cast(pa.string()), lambda: scalar.cast(pa.large_binary())):
        with contextlib.suppress(*_ERRORS, OverflowError):
            value = as_held().as_py()
            return value.decode("utf-8", errors="backslashreplace") if isinstance(value, bytes) else value
    return None
