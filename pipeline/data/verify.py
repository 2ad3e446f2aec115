"""Compare the files of shards with index.json, and decompress them.

Whatever is wrong with a file, these functions return it as one line and raise nothing, and they take little memory,
whatever it holds. Streaming's readers of shards hold what index.json says: for each file a `FileInfo` with its name,
size and hashes.
"""

import bz2
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import zstandard

from common.command_line import one_line
from common.files import partial_path
from common.shard_format import file_fault

_CHUNK_BYTES = 1 << 20
# Of each of `common.shard_format.COMPRESSIONS`, a stream that decompresses no more than is read.
_STREAMS: dict[str, Callable[[IO[bytes]], Any]] = {
    "zstd": lambda file: zstandard.ZstdDecompressor().stream_reader(file),
    "gz": lambda file: gzip.GzipFile(fileobj=file),
    "bz2": bz2.BZ2File,
}


def fault_of_file(path: Path, info: Any, *, name: object = None) -> str | None:
    """Return how a file differs from its `FileInfo`, in one line that calls it `name`, or None if it does not."""
    return file_fault(path, n_bytes=info.bytes, hashes=info.hashes, name=name)


def fault_of_shard(folder: Path, shard: Any) -> str | None:
    """Return what is wrong with a shard's files, in one line, or None; decompress them if necessary.

    Args:
        folder: the split's folder.
        shard: streaming's reader of the shard.
    """
    for raw_info, zip_info in shard.file_pairs:
        fault = fault_of_file(folder / raw_info.basename, raw_info)
        if fault is not None and zip_info is not None:
            fault = decompress(
                folder / zip_info.basename, zip_info, raw=folder / raw_info.basename, raw_info=raw_info,
                compression=shard.compression,
            )  # fmt: skip
        if fault is not None:
            return fault
    return None


def decompress(
    compressed: Path, zip_info: Any, *, raw: Path, raw_info: Any, compression: str, name: object = None
) -> str | None:
    """Write the decompressed file of a shard, which appears whole or not at all; return why that fails, or None.

    Args:
        compressed: the compressed file.
        zip_info: its `FileInfo`.
        raw: where the decompressed file goes.
        raw_info: the `FileInfo` of the decompressed file.
        compression: streaming's name of the algorithm.
        name: what the message calls the compressed file, if not by its path.
    """
    name = name or compressed
    fault = fault_of_file(compressed, zip_info, name=name)
    if fault is not None:
        return fault
    partial = partial_path(raw)
    try:
        with partial.open("wb") as file:
            for chunk in _decompressed(compressed, compression, most_bytes=raw_info.bytes):
                file.write(chunk)
        fault = fault_of_file(partial, raw_info, name=f"{name}, decompressed,")
        if fault is None:
            partial.replace(raw)
        return fault
    except _DamagedArchiveError as error:
        return f"{name} cannot be decompressed: {error}"
    except OSError as error:
        return f"{raw} cannot be written: {reason_of(error)}"
    finally:
        with suppress(OSError):
            partial.unlink()


class _DamagedArchiveError(Exception):
    """A file cannot be decompressed; the message says why."""


def _decompressed(path: Path, compression: str, *, most_bytes: int) -> Iterator[bytes]:
    """Yield the decompressed content of a file; end soon after `most_bytes`, if it holds more."""
    try:
        with path.open("rb") as file, _STREAMS[compression.partition(":")[0]](file) as content:
            n_bytes = 0
            while n_bytes <= most_bytes and (chunk := content.read(_CHUNK_BYTES)):
                n_bytes += len(chunk)
                yield chunk
    except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
        raise _DamagedArchiveError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line."""
    return (isinstance(error, OSError) and error.strerror) or one_line(error)
