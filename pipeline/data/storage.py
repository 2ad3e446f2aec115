"""Storage of shard files: they are on this machine, or are fetched from S3 into a folder on it.

Both classes are a `Stream` of streaming, whose threads prepare shards before they are needed, and remove the least
recently used ones from a full cache. `prepare_shard` must not raise: the exception would kill streaming's thread, and
then the epoch would end early without a message, or other processes would wait for the thread forever.

Importing this module imports streaming, which takes seconds: import it late.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command_line import UserError
from common.files import PARTIAL_NAME, partial_path
from common.mds import streaming
from common.s3 import MissingObjectError, RemoteError, S3Path
from common.shard_format import INDEX, read_index
from pipeline.data.verify import decompress, fault_of_file, reason_of

_REST_S = 60.0  # without requests after S3 did not answer: each window of a step may need another shard
_ABANDONED_S = 3600  # age of a partial file that no other run can still be writing
_Stream: Any = streaming.Stream  # typed Any, so that a type checker takes it for a base class


class LocalFiles(_Stream):
    """A stream whose shards are all assumed to be on this machine.

    Streaming itself would try to fetch a missing shard although there is no remote folder, which kills its thread. It
    would also delete a decompressed shard whose compressed file is gone.
    """

    is_unreachable = False

    def __init__(self, *, local: str) -> None:
        super().__init__(local=local)
        self._tried: set[str] = set()

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: NDArray[np.int64]) -> None:
        cache_usage_per_shard[:] = [shard.get_max_size() for shard in shards]
        cache_usage_per_shard[cache_usage_per_shard == 0] = 1  # 0 would mean that the shard has to be fetched

    def prepare_shard(self, shard: Any) -> int:
        """Decompress a shard before it is needed, for which streaming calls one process of a node; never raise."""
        name = shard.file_pairs[0][0].basename
        if name not in self._tried:
            self._tried.add(name)
            for raw_info, zip_info in shard.file_pairs:
                raw = Path(self.local) / raw_info.basename
                if zip_info is not None and not raw.exists():
                    compressed = Path(self.local) / zip_info.basename
                    decompress(compressed, zip_info, raw=raw, raw_info=raw_info, compression=shard.compression)
        return 0


class RemoteFiles(_Stream):
    """A stream whose shards are fetched when they are needed, and count towards the limit of the cache.

    The cache holds compressed shards in their decompressed form only.

    faults: why this process could not fetch a shard, by the name of its file.
    is_unreachable: True if the storage gave no usable answer to the last request.
    """

    def __init__(self, remote: S3Path, *, local: str) -> None:
        super().__init__(local=local)
        self._remote = remote
        self.faults: dict[str, str] = {}
        self.is_unreachable = False
        self._unreachable_since_s, self._last_failure = 0.0, ""

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: NDArray[np.int64]) -> None:
        remove_partial_files(Path(self.local))
        for number, shard in enumerate(shards):
            ((raw_info, _),) = shard.file_pairs
            is_here = (Path(self.local) / raw_info.basename).exists()
            cache_usage_per_shard[number] = raw_info.bytes if is_here else 0

    def prepare_shard(self, shard: Any) -> int:
        """Fetch a shard that is not here yet; return the number of bytes that were added; never raise."""
        ((raw_info, zip_info),) = shard.file_pairs
        if (Path(self.local) / raw_info.basename).exists():
            return 0
        if self.is_unreachable and time.monotonic() - self._unreachable_since_s < _REST_S:
            fault: str | None = self._last_failure
        else:
            fault = self._fetch(raw_info, zip_info, compression=shard.compression)
        if fault is not None:
            self.faults[raw_info.basename] = fault
            return 0
        self.faults.pop(raw_info.basename, None)
        return int(raw_info.bytes)

    def _fetch(self, raw_info: Any, zip_info: Any, *, compression: str) -> str | None:
        raw, name = Path(self.local) / raw_info.basename, self._remote / (zip_info or raw_info).basename
        fetched = partial_path(raw)  # renamed only when its content has been verified
        self.is_unreachable = False
        try:
            name.download(fetched)
            if zip_info is not None:
                return decompress(fetched, zip_info, raw=raw, raw_info=raw_info, compression=compression, name=name)
            fault = fault_of_file(fetched, raw_info, name=name)
            if fault is None:
                fetched.replace(raw)
            return fault
        except RemoteError as error:
            self.is_unreachable, self._unreachable_since_s, self._last_failure = True, time.monotonic(), str(error)
            return self._last_failure
        except MissingObjectError as error:
            return f"{error.filename} is missing"
        except OSError as error:
            return f"{raw} cannot be written: {reason_of(error)}"
        finally:
            with suppress(OSError):
                fetched.unlink(missing_ok=True)


def check_cache_limit(folder: Path, cache_limit: int) -> None:
    """Check that a cache is large enough for the shards of a split to take turns in it.

    Raises:
        UserError: it has no room for the index and four shards, the number that streaming requires.
    """
    entries = read_index(folder)
    largest = max(sum(entry[key]["bytes"] for key in ("raw_data", "zip_data") if entry.get(key)) for entry in entries)
    needed = 4 * largest + (folder / INDEX).stat().st_size
    if cache_limit < needed:
        raise UserError(f"data.cache_limit_gb={cache_limit / 1e9:g} is too low: these shards need {needed / 1e9:g}")


def bytes_read_from_at_a_time(
    n_bytes: int, *, n_windows: int, canonical_nodes: int, shuffle_block_size: int, n_nodes: int
) -> int:
    """Return how many bytes of a split one node reads from at a time; a smaller cache fetches them again and again.

    Each canonical node goes through its share of the windows block by block, and reads the windows of a block in random
    order. (This is how streaming's py1e and py1s work; the other algorithms differ by less than a block.)
    """
    in_block = min(shuffle_block_size, -(-n_windows // canonical_nodes))
    return min(n_bytes, -(-canonical_nodes // n_nodes) * in_block * n_bytes // n_windows)


def remove_partial_files(folder: Path) -> None:
    """Remove the partial files that killed processes have left."""
    for path in folder.rglob(".*"):
        with suppress(OSError):
            if PARTIAL_NAME.fullmatch(path.name) and time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
