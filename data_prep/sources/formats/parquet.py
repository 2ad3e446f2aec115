"""Parquet files, as in The Stack and StarCoderData: a row is a document, and a piece is a range of row groups.

Only the columns in the options are read, a few rows at a time, and a column's pages only when they are needed. So
memory does not grow with the size of files or row groups. Pages are measured before they are decompressed
(`parquet_pages`), and as no value is larger than its page, their sizes say how many rows are read at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.formats.opening import is_url, open_input
from data_prep.sources.formats.parquet_pages import page_bytes
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
_MOST_ROWS = 10**12  # of a row group; a file that claims more is damaged
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
        with _opened(path) as source:
            metadata = pq.read_metadata(source)
    except _ERRORS:
        yield Piece(PARQUET, path, 0, 0, size, selection)
        return
    n_groups = metadata.num_row_groups
    ends = [0]  # where the row groups end, in decompressed bytes
    for group in range(n_groups):
        ends.append(ends[-1] + metadata.row_group(group).total_byte_size)
    start = start_byte = 0
    for stop in range(1, n_groups + 1):
        stop_byte = size * ends[stop] // max(1, ends[-1]) if stop < n_groups else size
        if stop_byte - start_byte >= piece_bytes or stop == n_groups:
            yield Piece(PARQUET, path, start, stop, stop_byte - start_byte, selection)
            start, start_byte = stop, stop_byte
    if n_groups == 0:
        yield Piece(PARQUET, path, 0, 0, size, selection)


def read_row_groups(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of a piece. The piece's bytes are divided evenly among its rows."""
    try:
        source = _opened(piece.path)
    except OSError as error:
        yield Dropped("unreadable", piece.path, piece.size, f"byte 0: {error}"[:200])
        return
    with source:
        try:
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            if piece.stop == WHOLE:
                piece = replace(piece, stop=file.metadata.num_row_groups)
            _check_groups(file.metadata, piece)
        except _ERRORS as error:
            where = f"byte {source.size()}"  # the metadata of a file are at its end
            yield Dropped(CORRUPT, piece.path, piece.size, f"{where}: {error}"[:200])
            return
        for group in _groups_of(file.metadata, piece):
            yield from _read_group(file, group, options)


def _opened(path: str) -> pa.NativeFile:
    return pa.PythonFile(open_input(path), mode="r") if is_url(path) else pa.OSFile(path)


def _check_groups(metadata: pq.FileMetaData, piece: Piece) -> None:
    if metadata.num_row_groups < piece.stop:
        raise ValueError(f"{metadata.num_row_groups} row groups, not the {piece.stop} that were listed")
    for group in range(piece.stop):
        n_rows = metadata.row_group(group).num_rows
        if not 0 <= n_rows <= _MOST_ROWS:
            raise ValueError(f"row group {group} claims {n_rows} rows")


@dataclass(frozen=True)
class _Group:
    """A row group of a piece; `first_row` counts the rows of the file, and `n_bytes` are its bytes of the piece."""

    path: str
    index: int
    place: str
    first_row: int
    n_rows: int
    n_bytes: int

    def source(self, row: int) -> str:
        return f"{self.path}:row {self.first_row + row}"

    def bytes_of(self, start: int, stop: int) -> int:
        """Return the share of the bytes of the rows `start` to `stop`."""
        return self.n_bytes * stop // max(1, self.n_rows) - self.n_bytes * start // max(1, self.n_rows)


def _groups_of(metadata: pq.FileMetaData, piece: Piece) -> Iterator[_Group]:
    rows_of = [metadata.row_group(group).num_rows for group in range(piece.stop)]
    first_row = sum(rows_of[: piece.start])
    n_before, n_all = 0, max(1, sum(rows_of[piece.start :]))
    for index in range(piece.start, piece.stop):
        n_until = n_before + rows_of[index]
        n_bytes = piece.size * n_until // n_all - piece.size * n_before // n_all
        place = f"row group {index}, from byte {_start_of(metadata.row_group(index), 0)}"
        yield _Group(piece.path, index, place, first_row + n_before, rows_of[index], n_bytes)
        n_before = n_until


def _read_group(file: pq.ParquetFile, group: _Group, options: ReadOptions) -> Records:
    if group.n_rows and options.text_field not in file.schema_arrow.names:
        yield no_text_field(
            file.schema_arrow.names, group.source(0), options,
            input_bytes=group.n_bytes, place=group.place, documents=group.n_rows,
        )  # fmt: skip
        return
    n_read = 0
    try:
        for row in _rows(file, group, options):
            n_read += 1
            n_bytes = group.bytes_of(n_read - 1, n_read)
            yield _document(row, group.source(n_read - 1), options, input_bytes=n_bytes, place=group.place)
    except (_LargePageError, *_ERRORS) as error:
        reason = TOO_LARGE if isinstance(error, _LargePageError) else CORRUPT
        n_bytes, n_lost = group.bytes_of(n_read, group.n_rows), max(1, group.n_rows - n_read)
        yield Dropped(reason, group.source(n_read), n_bytes, f"{group.place}: {error}"[:200], n_lost)


def _document(row: dict[str, Any], source: str, options: ReadOptions, **place: Any) -> Document | Dropped:
    text = row[options.text_field]
    if isinstance(text, str | bytes) and len(text) > MOST_RECORD_BYTES:
        return too_large_record(source, place["input_bytes"], place=place["place"])
    return document_of_row(row, source, options, **place)


def _rows(file: pq.ParquetFile, group: _Group, options: ReadOptions) -> Iterator[dict[str, Any]]:
    """Yield the rows of a row group, with the columns in the options.

    Strings of the text column become bytes, so that each is checked by itself when it is decoded.
    """
    names = file.schema_arrow.names
    if options.fields is not None:
        names = [name for name in names if name in (options.text_field, *options.fields)]
    rows_at_once = _rows_at_once(file.metadata.row_group(group.index), names, path=group.path)
    for batch in file.iter_batches(rows_at_once, row_groups=[group.index], columns=names, use_threads=False):
        columns = [
            _bytes_of(column) if name == options.text_field else _values_of(column)
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _rows_at_once(group: pq.RowGroupMetaData, names: list[str], *, path: str) -> int:
    """Return how many rows may be in memory together, which is few if a page of the columns is large.

    Raises:
        _LargePageError: a page is too large.
    """
    largest = max((_largest_page(group, i, path=path) for i in _columns_of(group, names)), default=0)
    if largest > _MOST_PAGE_BYTES:
        raise _LargePageError(f"a page has {largest:,} bytes; {_MOST_PAGE_BYTES:,} is the most")
    return max(1, min(_MOST_ROWS_AT_ONCE, _MOST_BYTES_AT_ONCE // max(1, largest)))


def _columns_of(group: pq.RowGroupMetaData, names: list[str]) -> list[int]:
    """Return the stored columns of top-level columns with these names; a list or a struct has several."""
    paths = [group.column(i).path_in_schema for i in range(group.num_columns)]
    return [i for i, path in enumerate(paths) if any(path == name or path.startswith(f"{name}.") for name in names)]


def _largest_page(group: pq.RowGroupMetaData, column: int, *, path: str) -> int:
    """Return the size of the largest page of a column; the size of a small column, or of a distant one, as a whole."""
    chunk = group.column(column)
    if is_url(path):  # reading each header would take a request
        return min(int(chunk.total_uncompressed_size), _MOST_PAGE_BYTES)
    start = _start_of(group, column)
    with open(path, "rb") as file:
        return max(page_bytes(file, start=start, stop=start + chunk.total_compressed_size), default=0)


def _start_of(group: pq.RowGroupMetaData, column: int) -> int:
    if column >= group.num_columns:
        return 0
    chunk = group.column(column)
    return min(offset for offset in (chunk.dictionary_page_offset, chunk.data_page_offset) if offset)


def _bytes_of(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()


def _values_of(column: pa.Array) -> list[Any]:
    """Return the values of a column beside the text; None for what Python cannot hold, such as the year 14645."""
    try:
        return column.to_pylist()
    except (*_ERRORS, OverflowError):
        return [_value_of(scalar) for scalar in column]


def _value_of(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except (*_ERRORS, OverflowError):
        return None
