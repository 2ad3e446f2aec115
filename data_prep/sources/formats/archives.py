"""Compressed files as streams that take little memory, whatever the file holds.

A kilobyte of zstd may hold 32 MB of zeros, and gzip packs a thousand bytes into one. So gzip is asked for a limited
amount at a time, and zstd, whose library has no such limit, gets a kilobyte at a time.
"""

import io
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import zstandard

GZ, ZST = ".gz", ".zst"
_MAGIC = {
    b"\x1f\x8b": GZ,
    b"\x28\xb5\x2f\xfd": ZST,
    b"BZh": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"\x04\x22\x4d\x18": ".lz4",
    b"PK\x03\x04": ".zip",
    b"7z\xbc\xaf\x27\x1c": ".7z",
    b"PAR1": ".parquet",  # under another name; its pages are compressed
}
_CHUNK_BYTES = {
    GZ: 1 << 15,
    ZST: 1 << 10,
}  # small, so that little is lost before damage, and its place is named exactly
_MOST_AT_ONCE = 1 << 20  # decompressed bytes of gzip
_LARGEST_WINDOW = 1 << 31  # of zstd: `zstd --long=31` makes such files, and some corpora consist of them


class DamagedError(Exception):
    """An archive cannot be read any further; the message says where and why."""

    def __init__(self, position: int, message: str) -> None:
        super().__init__(message)
        self.position = position
        """The byte of the file before which the damage lies."""


def compression_of(head: bytes) -> str | None:
    """Return the usual suffix of a compressed file that starts with `head`; None for a file that is not compressed."""
    return next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), None)


def decompressed(file: IO[bytes], compression: str) -> io.BufferedReader:
    """Return the content of a file that is compressed as `GZ` or `ZST`.

    Reading raises:
        DamagedError: the file is not an archive of this format, or it ends within a frame. (The library's own stream
            does not report the latter for zstd.)
    """
    return io.BufferedReader(_Stream(_chunks(file, compression)), buffer_size=1 << 16)


class _Stream(io.RawIOBase):
    """Chunks of bytes as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and (chunk := next(self._chunks, None)) is not None:
            self._rest = memoryview(chunk)  # which may be empty
        n_bytes = min(len(buffer), len(self._rest))
        buffer[:n_bytes] = self._rest[:n_bytes]
        self._rest = self._rest[n_bytes:]
        return n_bytes


def _chunks(file: IO[bytes], compression: str) -> Iterator[bytes]:
    """Yield the decompressed content of every gzip member or zstd frame in a file; corpora often have many."""
    new_frame: Callable[[], Any] = _gzip_member if compression == GZ else _zstd_frame
    frame: Any = None
    offset = 0
    while data := file.read(_CHUNK_BYTES[compression]):
        offset += len(data)
        while data:
            if frame is None and compression == GZ and not (data := data.lstrip(b"\0")):
                break  # an archive may be padded with zeros
            frame = frame or new_frame()
            try:
                yield from _members_content(frame, data) if compression == GZ else [frame.decompress(data)]
            except (zlib.error, zstandard.ZstdError) as error:
                position = offset - len(data)
                raise DamagedError(position, f"after byte {position}: {error}") from error
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None or offset == 0:  # even an archive of nothing is not an empty file
        raise DamagedError(offset, f"byte {offset}: the file ends too early")


def _members_content(member: Any, data: bytes) -> Iterator[bytes]:
    """Yield what a gzip member makes of some more of the file."""
    while not member.eof and (chunk := member.decompress(data, _MOST_AT_ONCE)):
        yield chunk
        data = member.unconsumed_tail


def _gzip_member() -> Any:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _zstd_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompressobj()
