"""Parquet files, as in The Stack and StarCoderData: a row is a document, and a piece is a range of row groups.

Only the columns in the options are read, a few rows at a time, and a column's pages only when they are needed. So
memory does not grow with the size of files or row groups.
"""

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.records import PARQUET, document_of_row

_ROWS_AT_ONCE = 128  # a row may be a whole source file
_BUFFER_BYTES = 1 << 20
_ERRORS = (pa.ArrowException, OSError, ValueError)  # raised for damaged pages, depending on the layer
CORRUPT = "corrupt_parquet"


def cut_row_groups(path: str, *, size: int, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    """Yield the pieces of a file of `size` bytes; all but the last have at least `piece_bytes`.

    A file that cannot be read is one piece without row groups; reading it gives the reason.
    """
    try:
        metadata = pq.read_metadata(path)
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


def read_row_groups(piece: Piece, options: ReadOptions) -> Iterator[Document | Dropped]:
    """Yield the documents of a piece. The piece's bytes are divided evenly among its rows."""
    try:
        source = pa.OSFile(piece.path)
    except OSError as error:
        yield Dropped("unreadable", piece.path, piece.size, f"byte 0: {error}"[:200])
        return
    with source:
        try:
            file = pq.ParquetFile(source, pre_buffer=False, buffer_size=_BUFFER_BYTES)
            _check_groups(file.metadata, piece)
        except _ERRORS as error:
            where = f"byte {source.size()}"  # the metadata of a file are at its end
            yield Dropped(CORRUPT, piece.path, piece.size, f"{where}: {error}"[:200])
            return
        yield from _read_groups(file, piece, options)


def _check_groups(metadata: pq.FileMetaData, piece: Piece) -> None:
    if metadata.num_row_groups < piece.stop:
        raise ValueError(f"{metadata.num_row_groups} row groups, not the {piece.stop} that were listed")


def _read_groups(file: pq.ParquetFile, piece: Piece, options: ReadOptions) -> Iterator[Document | Dropped]:
    metadata = file.metadata
    rows_of = [metadata.row_group(group).num_rows for group in range(piece.stop)]
    first = sum(rows_of[: piece.start])
    n_rows = sum(rows_of) - first
    n_read = 0  # rows of this piece

    def bytes_until(row: int) -> int:
        return piece.size * row // max(1, n_rows)

    for group in range(piece.start, piece.stop):
        place = f"row group {group}, from byte {_offset_of(metadata, group)}"
        end_of_group = n_read + rows_of[group]
        try:
            for row in _rows(file, group, options):
                source = f"{piece.path}:row {first + n_read}"
                moved = bytes_until(n_read + 1) - bytes_until(n_read)
                n_read += 1
                yield document_of_row(row, source, options, input_bytes=moved, place=place)
        except _ERRORS as error:
            lost = bytes_until(end_of_group) - bytes_until(n_read)
            yield Dropped(CORRUPT, f"{piece.path}:row {first + n_read}", lost, f"{place}: {error}"[:200])
            n_read = end_of_group


def _offset_of(metadata: pq.FileMetaData, group: int) -> int:
    if metadata.num_columns == 0:
        return 0
    column = metadata.row_group(group).column(0)
    return column.dictionary_page_offset or column.data_page_offset


def _rows(file: pq.ParquetFile, group: int, options: ReadOptions) -> Iterator[dict[str, Any]]:
    """Yield the rows of a row group.

    Strings of the text column become bytes, so that each is checked by itself when it is decoded.
    """
    names = file.schema_arrow.names
    if options.fields is not None:
        names = [name for name in names if name in (options.text_field, *options.fields)]
    if options.text_field not in names:  # each row becomes a `Dropped` that names the existing columns
        yield from (dict.fromkeys(file.schema_arrow.names) for _ in range(file.metadata.row_group(group).num_rows))
        return
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=names, use_threads=False):
        columns = [
            _values(column) if name == options.text_field else column.to_pylist()
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
        ]
        for values in zip(*columns, strict=True):
            yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return column.to_pylist()
