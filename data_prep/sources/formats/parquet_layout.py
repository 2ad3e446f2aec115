"""The places and sizes of a Parquet file's row groups, columns and pages, before any is decompressed.

pyarrow cannot be asked: `RowGroupMetaData.column` ends the whole process where the metadata of a column are damaged
(pyarrow 26), and no interface tells the sizes of pages, of which one of a kilobyte may decompress to 2 GiB. The
structures and their field numbers are those of apache/parquet-format, `parquet.thrift`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from data_prep.sources.formats.thrift import ThriftReader

_MAGIC = b"PAR1"
_MOST_FOOTER_BYTES = 64 << 20
_MOST_ROWS = 10**12  # of a row group; a file that claims more is damaged
_HEADER_BYTES = 1 << 16  # of a page, which statistics may make long
# FileMetaData, its row groups, their columns: file_path and meta_data, with path_in_schema, the two sizes, two offsets
_COLUMN = {1: None, 3: {3: None, 6: None, 7: None, 9: None, 11: None}}
_FOOTER = {4: {1: _COLUMN, 2: None, 3: None}}
_PAGE_HEADER = {2: None, 3: None}  # the decompressed and the stored size


@dataclass(frozen=True)
class Chunk:
    """A column of a row group: its path, such as licences.list.element, its place in the file, and its full size."""

    path: str
    start: int = 0
    stop: int = 0
    decompressed_bytes: int = 0
    problem: str = ""
    """Why the column cannot be read, which harms nobody who does not want it."""


@dataclass(frozen=True)
class RowGroup:
    """A row group: how many rows it has, and its full size."""

    n_rows: int
    decompressed_bytes: int
    chunks: tuple[Chunk, ...]


def row_groups_of(file: IO[bytes]) -> list[RowGroup]:
    """Return the row groups of a Parquet file.

    Raises:
        ValueError: the file is damaged.
        OSError: the file cannot be read.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - 8))
    end = file.read(8)
    n_bytes = int.from_bytes(end[:4], "little")
    if end[4:] != _MAGIC or not 0 < n_bytes <= min(size - 8, _MOST_FOOTER_BYTES):
        raise ValueError("it has no footer of Parquet")
    file.seek(size - 8 - n_bytes)
    groups = ThriftReader(file.read(n_bytes)).struct(_FOOTER).get(4)
    return [_row_group(fields, file_bytes=size) for fields in _list(groups)]


def page_bytes(file: IO[bytes], chunk: Chunk) -> Iterator[int]:
    """Yield the decompressed size of each page of a column.

    Raises:
        ValueError: a header is damaged, or the column cannot be read.
    """
    if chunk.problem:
        raise ValueError(chunk.problem)
    start = chunk.start
    while start < chunk.stop:
        file.seek(start)
        reader = ThriftReader(file.read(_HEADER_BYTES))
        header = reader.struct(_PAGE_HEADER)
        yield _number(header, 2)
        start += reader.position + _number(header, 3)


def _row_group(fields: Any, *, file_bytes: int) -> RowGroup:
    group = _struct(fields)
    n_rows = _number(group, 3)
    if n_rows > _MOST_ROWS:
        raise ValueError(f"a row group claims {n_rows} rows")
    chunks = tuple(_chunk(_struct(column), file_bytes=file_bytes) for column in _list(group.get(1)))
    return RowGroup(n_rows, _number(group, 2), chunks)


def _chunk(column: dict[int, Any], *, file_bytes: int) -> Chunk:
    fields = _struct(column.get(3))
    path = b".".join(map(bytes, _list(fields.get(3)))).decode("utf-8", errors="replace")
    if column.get(1):  # a manifest of several files, such as `_metadata`, has columns that lie in others
        return Chunk(path, problem=f"the column {path!r} lies in another file, {column[1]!r}")
    try:
        offsets = [fields.get(9), fields.get(11)]
        start = min(offset for offset in offsets if isinstance(offset, int) and offset > 0)
        chunk = Chunk(path, start, start + _number(fields, 7), _number(fields, 6))
    except ValueError:
        return Chunk(path, problem=f"the metadata of the column {path!r} are damaged")
    if chunk.stop > file_bytes:
        return Chunk(path, problem=f"the column {path!r} ends beyond the file")
    return chunk


def _number(fields: dict[int, Any], number: int) -> int:
    value = fields.get(number)
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"a structure has no valid field {number}")
    return value


def _struct(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise ValueError("a structure is missing")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("a list is missing")
    return value
