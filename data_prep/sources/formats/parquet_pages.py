"""The sizes of the pages of a Parquet file, before any of them is decompressed.

A page of a kilobyte may decompress to 2 GiB, and pyarrow allocates what a page's header says. So the headers are read
here: structures in Thrift's compact protocol (https://github.com/apache/thrift, doc/specs/thrift-compact-protocol.md),
whose fields 2 and 3 are the decompressed and the stored size of the page (apache/parquet-format, `PageHeader`).
"""

from collections.abc import Iterator
from typing import IO

_I32_FIELDS = (1, 2, 3)  # type, decompressed size, stored size
_HEADER_BYTES = 1 << 16  # statistics may make a header long
_MOST_LEVELS = 16


def page_bytes(file: IO[bytes], *, start: int, stop: int) -> Iterator[int]:
    """Yield the decompressed size of each page of a column chunk, which lies at `start` to `stop` in the file.

    Raises:
        ValueError: a header is damaged.
    """
    while start < stop:
        file.seek(start)
        header = _Compact(file.read(_HEADER_BYTES))
        sizes = header.page_sizes()
        yield sizes[2]
        start += header.position + sizes[3]


class _Compact:
    """Reads a structure in Thrift's compact protocol."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def page_sizes(self) -> dict[int, int]:
        """Return the fields 1 to 3 of a `PageHeader`, and go past it."""
        values: dict[int, int] = {}
        number = 0
        while (header := self._byte()) != 0:
            number = number + (header >> 4) if header >> 4 else self._zigzag()
            if number in _I32_FIELDS and header & 15 == 5:
                values[number] = self._zigzag()
            else:
                self._skip(header & 15, level=0)
        if values.keys() != set(_I32_FIELDS) or values[2] < 0 or values[3] < 0:
            raise ValueError("a page header lacks its sizes")
        return values

    def _skip(self, kind: int, *, level: int) -> None:
        """Go past a value of a type of the protocol."""
        if level > _MOST_LEVELS:
            raise ValueError("a page header is nested too deep")
        if kind in (1, 2):  # a boolean, whose value is its type
            return
        if kind == 3:
            self.position += 1
        elif kind in (4, 5, 6):
            self._varint()
        elif kind == 7:
            self.position += 8
        elif kind == 8:
            length = self._varint()
            self.position += length
        elif kind == 12:
            while (header := self._byte()) != 0:
                if not header >> 4:
                    self._varint()
                self._skip(header & 15, level=level + 1)
        else:  # Parquet's page headers have no lists, sets or maps
            raise ValueError(f"a page header has a field of type {kind}")

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise ValueError("a page header has no end")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a page header has a number of too many bytes")

    def _zigzag(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
