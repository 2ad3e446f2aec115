"""Files of shards, compared with what index.json says of them: size and hash; decompressed if need be.

Whatever a file or an index holds, it comes out as one line that says what is wrong, or as a user's error.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from common.files import partial_path
from common.mds import streaming
from common.shard_format import content_fault, file_fault


def shard_fault(folder: Path, shard: Any) -> str | None:
    """Return what is wrong with a shard's files, in one line, or None; decompress it if need be.

    Args:
        folder: of the split.
        shard: streaming's reader of it, which has what index.json says.
    """
    for raw_info, zip_info in shard.file_pairs:
        fault = file_fault(folder / raw_info.basename, n_bytes=raw_info.bytes, hashes=raw_info.hashes)
        if fault is not None and zip_info is not None:
            fault = decompress(folder, raw_info, zip_info, compression=shard.compression)
        if fault is not None:
            return fault
    return None


def decompress(
    folder: Path, raw_info: Any, zip_info: Any, *, compression: str, fetched: Path | None = None, name: object = None
) -> str | None:
    """Make the decompressed file of a shard, whole or not at all; return why that cannot be, or None.

    Args:
        folder: of the split.
        raw_info: what the index says of the decompressed file.
        zip_info: of the compressed one.
        compression: streaming's name of the algorithm.
        fetched: the compressed file, if it does not lie in the folder under its name.
        name: what the message calls the compressed file, if not by its path.
    """
    compressed, raw = fetched or folder / zip_info.basename, folder / raw_info.basename
    name = name or compressed
    fault = file_fault(compressed, n_bytes=zip_info.bytes, hashes=zip_info.hashes, name=name)
    if fault is not None:
        return fault
    try:
        data = streaming.base.compression.decompress(compression, compressed.read_bytes())
    except Exception as error:  # each algorithm has its own
        return f"{name} cannot be decompressed ({reason_of(error)})"
    fault = content_fault(data, name=f"{name}, decompressed,", n_bytes=raw_info.bytes, hashes=raw_info.hashes)
    if fault is not None:
        return fault
    partial = partial_path(raw)
    try:
        partial.write_bytes(data)
        partial.replace(raw)
    except OSError as error:
        return f"{raw} cannot be written ({reason_of(error)})"
    finally:
        with suppress(OSError):
            partial.unlink()
    return None


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
