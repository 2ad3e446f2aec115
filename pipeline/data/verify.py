"""Files of shards, compared with what index.json says of them: size and hash; decompressed if need be.

Whatever a file or an index holds, it comes out as one line that says what is wrong, or as a user's error.
"""

import hashlib
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from common.command_line import UserError
from common.files import inside
from common.mds import streaming

INDEX = "index.json"


def check_index(folder: Path) -> None:
    """Check that a split's index.json can be read, and names files inside its folder only.

    Raises:
        UserError: it is missing or no index of shards, or a name leads out of the folder.
    """
    path = folder / INDEX
    try:
        shards = json.loads(path.read_text(encoding="utf-8"))["shards"]
        names = [
            shard[key]["basename"]
            for shard in shards
            for key in ("raw_data", "zip_data", "raw_meta", "zip_meta")
            if shard.get(key) is not None
        ]
        n_samples = sum(shard["samples"] for shard in shards)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); write the shards again") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not an index of shards ({error!r}); write the shards again") from error
    for name in names:
        inside(folder, name, named_in=INDEX)
    if not n_samples:
        raise UserError(f"{path} names no samples; write the shards again")


def shard_fault(folder: Path, shard: Any) -> str | None:
    """Return what is wrong with a shard's files, in one line, or None; decompress it if need be.

    Args:
        folder: of the split.
        shard: streaming's reader of it, which has what index.json says.
    """
    for raw_info, zip_info in shard.file_pairs:
        fault = file_fault(folder, raw_info)
        if fault is not None and zip_info is not None:
            fault = decompress(folder, raw_info, zip_info, compression=shard.compression)
        if fault is not None:
            return fault
    return None


def file_fault(folder: Path, info: Any, *, path: Path | None = None) -> str | None:
    """Return how a file differs from its entry in index.json (basename, bytes, hashes), in one line, or None.

    Args:
        folder: of the split.
        info: the entry.
        path: of the file, if it does not have its name yet.
    """
    path, algorithm = path or folder / info.basename, hash_of(info.hashes)
    try:
        n_bytes = path.stat().st_size
        if n_bytes != info.bytes:
            return f"{path} has {n_bytes} bytes, its index says {info.bytes}"
        if algorithm is None:
            return None
        with path.open("rb") as file:
            found = hashlib.file_digest(file, _constructor(algorithm)).hexdigest()
    except FileNotFoundError:
        return f"{path} is missing, its index says {info.bytes} bytes"
    except OSError as error:
        return f"{path} cannot be read ({reason_of(error)})"
    if found != info.hashes[algorithm]:
        return f"{path} has the {algorithm} {found}, its index says {info.hashes[algorithm]}"
    return None


def decompress(
    folder: Path, raw_info: Any, zip_info: Any, *, compression: str, compressed: Path | None = None
) -> str | None:
    """Make the decompressed file of a shard, whole or not at all; return why that cannot be, or None.

    Args:
        folder: of the split.
        raw_info: what the index says of the decompressed file.
        zip_info: of the compressed one.
        compression: streaming's name of the algorithm.
        compressed: the compressed file, if it does not have its name yet.
    """
    compressed, raw = compressed or folder / zip_info.basename, folder / raw_info.basename
    fault = file_fault(folder, zip_info, path=compressed)
    if fault is not None:
        return fault
    try:
        data = streaming.base.compression.decompress(compression, compressed.read_bytes())
    except Exception as error:  # each algorithm has its own
        return f"{compressed} cannot be decompressed ({reason_of(error)})"
    algorithm = hash_of(raw_info.hashes)
    if len(data) != raw_info.bytes:
        return f"{compressed} holds {len(data)} bytes, its index says {raw_info.bytes}"
    if algorithm is not None:
        found = _constructor(algorithm)(data).hexdigest()
        if found != raw_info.hashes[algorithm]:
            return f"{compressed} holds the {algorithm} {found}, its index says {raw_info.hashes[algorithm]}"
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


def partial_path(path: Path) -> Path:
    """Return another name for a file that is not whole yet; others may be at it as well, on other machines too."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}")


def hash_of(hashes: Mapping[str, str]) -> str | None:
    """Return the first algorithm of an index's hashes that is known here."""
    known = xxhash.algorithms_available | hashlib.algorithms_guaranteed
    return next((name for name in sorted(hashes) if name in known and not name.startswith("shake_")), None)


def _constructor(algorithm: str) -> Callable[..., Any]:
    return getattr(xxhash if algorithm in xxhash.algorithms_available else hashlib, algorithm)


def reason_of(error: Exception) -> str:
    """Return why something failed, in one line."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
