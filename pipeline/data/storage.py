"""Where the files of shards come from: they are on this machine, or fetched into a folder of it from S3.

Both kinds are a `Stream` of streaming, whose threads prepare shards ahead of their use, and remove those read longest
ago where a cache is full. Neither raises anything in `prepare_shard`, where streaming's thread would die of it,
and the epoch end early and in silence, or other processes wait for it without end.

Importing this module imports streaming, which takes seconds: import it late.
"""

import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command_line import UserError
from common.files import partial_path
from common.mds import streaming
from common.s3 import MissingObjectError, RemoteError, S3Path
from common.shard_format import INDEX, file_fault, read_index
from pipeline.data.verify import decompress, reason_of

_REST_S = 60.0  # after many attempts, in which nothing is asked for: each window of a step may be of another shard
_ABANDONED_S = 3600  # others, of another run, may be writing now
_Stream: Any = streaming.Stream  # a name that a type checker takes for a base class


class LocalFiles(_Stream):
    """All shards are taken to be there.

    Streaming would fetch a missing one, without knowing from where, and its thread would die of it. It would delete a
    decompressed shard whose compressed form is gone.
    """

    def __init__(self, *, local: str) -> None:
        super().__init__(local=local)
        self._tried: set[str] = set()
        self.is_cut_off = False

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: NDArray[np.int64]) -> None:
        cache_usage_per_shard[:] = [shard.get_max_size() for shard in shards]
        cache_usage_per_shard[cache_usage_per_shard == 0] = 1  # 0 would mean: to be fetched

    def prepare_shard(self, shard: Any) -> int:
        """Decompress a shard ahead of its use, which streaming asks one process of a node for; raise nothing."""
        name = shard.file_pairs[0][0].basename
        if name not in self._tried:
            self._tried.add(name)
            for raw_info, zip_info in shard.file_pairs:
                if zip_info is not None and not (Path(self.local) / raw_info.basename).exists():
                    decompress(Path(self.local), raw_info, zip_info, compression=shard.compression)
        return 0


class RemoteFiles(_Stream):
    """Shards are fetched when they are needed, and count for the cache's limit.

    Compressed ones lie in the cache decompressed alone.

    faults: why a shard could not be fetched by this process, by the name of its file.
    is_cut_off: whether the storage, the last time, gave no answer, or none that could be used.
    """

    def __init__(self, remote: S3Path, *, local: str) -> None:
        super().__init__(local=local)
        self._remote = remote
        self.faults: dict[str, str] = {}
        self.is_cut_off = False
        self._cut_off_at_s, self._silence = 0.0, ""

    def set_up_local(self, shards: list[Any], cache_usage_per_shard: NDArray[np.int64]) -> None:
        remove_partial_files(Path(self.local))
        for place, shard in enumerate(shards):
            ((raw_info, _),) = shard.file_pairs
            is_here = (Path(self.local) / raw_info.basename).exists()
            cache_usage_per_shard[place] = raw_info.bytes if is_here else 0

    def prepare_shard(self, shard: Any) -> int:
        """Fetch a shard that is not here; return how many bytes more there are."""
        ((raw_info, zip_info),) = shard.file_pairs
        if (Path(self.local) / raw_info.basename).exists():
            return 0
        if self.is_cut_off and time.monotonic() - self._cut_off_at_s < _REST_S:
            fault: str | None = self._silence
        else:
            fault = self._fetch(raw_info, zip_info, compression=shard.compression)
        if fault is not None:
            self.faults[raw_info.basename] = fault
            return 0
        self.faults.pop(raw_info.basename, None)
        return int(raw_info.bytes)

    def _fetch(self, raw_info: Any, zip_info: Any, *, compression: str) -> str | None:
        folder, info = Path(self.local), zip_info or raw_info
        remote = self._remote / info.basename
        fetched = partial_path(folder / info.basename)  # not its name before it is known to be whole
        self.is_cut_off = False
        try:
            remote.download(fetched)
            if zip_info is not None:
                return decompress(folder, raw_info, zip_info, compression=compression, fetched=fetched, name=remote)
            fault = file_fault(fetched, n_bytes=info.bytes, hashes=info.hashes, name=remote)
            if fault is None:
                fetched.replace(folder / raw_info.basename)
            return fault
        except RemoteError as error:
            self.is_cut_off, self._cut_off_at_s, self._silence = True, time.monotonic(), str(error)
            return self._silence
        except MissingObjectError as error:
            return f"{error.filename} is missing"
        except OSError as error:
            return f"{folder / raw_info.basename} cannot be written ({reason_of(error)})"
        finally:
            with suppress(OSError):
                fetched.unlink(missing_ok=True)


def check_cache_limit(folder: Path, cache_limit: int) -> None:
    """Check that the shards of a split can take turns in a cache.

    Raises:
        UserError: it is too small for four of them, which streaming asks for, and the index.
    """
    entries = read_index(folder)
    largest = max(sum(entry[key]["bytes"] for key in ("raw_data", "zip_data") if entry.get(key)) for entry in entries)
    needed = 4 * largest + (folder / INDEX).stat().st_size
    if cache_limit < needed:
        raise UserError(f"data.cache_limit_gb={cache_limit / 1e9:g} is too low: these shards need {needed / 1e9:g}")


def bytes_read_from_at_a_time(
    n_bytes: int, *, n_windows: int, canonical_nodes: int, shuffle_block_size: int, n_nodes: int
) -> int:
    """Return how much of a split one node reads from at a time; a cache of less fetches it again and again.

    Each canonical node goes through its share of the windows in blocks, and in each of them at random (streaming's py1e
    and py1s; the other algorithms differ by less than a block).
    """
    in_block = min(shuffle_block_size, -(-n_windows // canonical_nodes))
    return min(n_bytes, -(-canonical_nodes // n_nodes) * in_block * n_bytes // n_windows)


def remove_partial_files(folder: Path) -> None:
    """Remove what processes that were killed did not finish."""
    for path in folder.rglob(".*"):
        with suppress(OSError):
            if re.search(r"\.[0-9a-f]{32}$", path.name) and time.time() - path.stat().st_mtime > _ABANDONED_S:
                path.unlink()
