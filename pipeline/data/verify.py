"""Compare the files of shards with index.json, and decompress them.

Whatever is wrong with a file, these functions return it as one line and raise nothing. Streaming's readers of shards
hold what index.json says: for each file a `FileInfo` with its name, size and hashes.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from common.command_line import one_line
from common.files import partial_path
from common.mds import streaming
from common.shard_format import content_fault, file_fault


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
    try:
        content = streaming.base.compression.decompress(compression, compressed.read_bytes())
    except Exception as error:  # each algorithm has its own exceptions
        return f"{name} cannot be decompressed ({reason_of(error)})"
    fault = content_fault(content, name=f"{name}, decompressed,", n_bytes=raw_info.bytes, hashes=raw_info.hashes)
    if fault is not None:
        return fault
    partial = partial_path(raw)
    try:
        partial.write_bytes(content)
        partial.replace(raw)
    except OSError as error:
        return f"{raw} cannot be written ({reason_of(error)})"
    finally:
        with suppress(OSError):
            partial.unlink()
    return None


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line."""
    return (isinstance(error, OSError) and error.strerror) or one_line(error)
