"""Structures in Thrift's compact protocol, which Parquet's metadata are written in; bounded time whatever the bytes.

The protocol is in apache/thrift, doc/specs/thrift-compact-protocol.md. A *pattern* says which fields are wanted: a
mapping from their numbers to None for a value, or to the pattern of a structure, or of the structures in a list.
"""

from collections.abc import Mapping
from typing import Any

Pattern = Mapping[int, Any]
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MOST_LEVELS = 16


class ThriftReader:
    """Reads structures from bytes.

    Its methods raise:
        ValueError: the bytes are not such a structure.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    def struct(self, pattern: Pattern, *, level: int = 0) -> dict[int, Any]:
        """Return the fields in `pattern` of the structure that begins here, and go past it."""
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._integer()
            kind = header & 15
            value = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind, pattern.get(number), level=level)
            if number in pattern:
                fields[number] = value
        return fields

    def _value(self, kind: int, pattern: Pattern | None, *, level: int) -> Any:
        if level > _MOST_LEVELS:
            raise ValueError("its structures and lists are nested too deep")
        if kind in (_I16, _I32, _I64):
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct(pattern or {}, level=level + 1)
        if kind in (_LIST, _SET):
            header = self._byte()
            size = header >> 4 if header >> 4 < 15 else self._varint()
            return [self._value(header & 15, pattern, level=level + 1) for _ in range(self._checked(size))]
        if kind == _MAP:
            size = self._checked(self._varint())
            kinds = self._byte() if size else 0
            for _ in range(size):
                self._value(kinds >> 4, None, level=level + 1)
                self._value(kinds & 15, None, level=level + 1)
            return None
        if kind in (_TRUE, _FALSE, _BYTE):  # in a list, where booleans are bytes, too
            return self._byte()
        if kind == _DOUBLE:
            return self._bytes(8)
        raise ValueError(f"a field has the unknown type {kind}")

    def _checked(self, size: int) -> int:
        if size > len(self._data) - self.position:  # each element takes a byte at least
            raise ValueError("a list has more elements than there are bytes")
        return size

    def _bytes(self, size: int) -> bytes:
        start = self.position
        self.position += self._checked(size)
        return self._data[start : self.position]

    def _byte(self) -> int:
        if self.position >= len(self._data):
            raise ValueError("a structure has no end")
        self.position += 1
        return self._data[self.position - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number has too many bytes")

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
