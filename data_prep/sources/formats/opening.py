"""Opening an input file: on this machine, or in the storage of a Hugging Face data set."""

from typing import IO, Any

from common.command_line import one_line

_URL = "://"
_BUFFER_BYTES = 1 << 18  # with Python's 8 KiB, long lines take several times as long


def is_url(path: str) -> bool:
    """Return whether a path names a file in another storage, such as hf://datasets/NAME@COMMIT/FILE."""
    return _URL in path


def open_input(path: str) -> IO[bytes]:
    """Return a file, open for reading.

    Raises:
        OSError: it cannot be opened.
    """
    if not is_url(path):
        return open(path, "rb", buffering=_BUFFER_BYTES)
    import fsspec  # late, because only data sets of the Hub need it

    try:
        opened: Any = fsspec.open(path, "rb").open()
    except Exception as error:  # each storage raises its own
        raise OSError(one_line(error)) from error
    return opened
