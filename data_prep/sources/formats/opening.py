"""Opening an input file: on this machine, or in the storage of a Hugging Face data set."""

import io
from typing import IO, Any

from common.command_line import one_line

_URL = "://"
_BUFFER_BYTES = 1 << 18  # with Python's 8 KiB, long lines take several times as long


def is_url(path: str) -> bool:
    """Return whether a path names a file in another storage, such as hf://datasets/NAME@COMMIT/FILE."""
    return _URL in path


def open_input(path: str) -> IO[bytes]:
    """Return a file, open for reading, whose methods raise an OSError if they fail, wherever the file lies.

    Raises:
        OSError: it cannot be opened.
    """
    if is_url(path):
        return io.BufferedReader(_DistantFile(path), buffer_size=_BUFFER_BYTES)
    return open(path, "rb", buffering=_BUFFER_BYTES)


class _DistantFile(io.RawIOBase):
    """A file of fsspec, whose own `readline` takes no limit, and whose storages each raise errors of their own."""

    def __init__(self, path: str) -> None:
        import fsspec  # late, because only data sets of the Hub need it

        self._file: Any = None
        try:
            self._file = fsspec.open(path, "rb").open()
        except Exception as error:
            raise OSError(one_line(error)) from error

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._file.read(len(buffer))
        except Exception as error:
            raise OSError(one_line(error)) from error
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
