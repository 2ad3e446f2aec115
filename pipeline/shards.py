"""Shards on disks that fail: streaming's data set, which trusts no file before it has seen its bytes.

Before the first sample of a shard, its file is compared with index.json: size and hash. What is missing, cut off,
unreadable or changed is at fault; the windows of the next whole shard, in cyclic order, take the place of its own, so
that steps keep their shape, and the sample says so. Nothing is raised where a loader worker would die of it; what to do
about a fault is the training loop's to decide.

A compressed shard lies beside its decompressed form, which is made when first needed. If that is damaged, as a kill or
a power cut in the middle may leave it, it is made again. Nothing is ever downloaded, and no shard is deleted.

Importing this module imports streaming, which takes seconds: import it late.
"""

import hashlib
import json
import multiprocessing
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from common.command_line import UserError
from common.files import inside
from common.mds import streaming
from pipeline.data import NOTHING
from pipeline.distributed import logger, world_from_environment
from pipeline.shared_names import one_start_at_a_time, own

INDEX = "index.json"
_Dataset: Any = streaming.StreamingDataset  # names that a type checker takes for a base class
_Stream: Any = streaming.Stream


class ShardFolder(_Dataset):
    """The samples of one split, on local disks.

    A sample has its `tokens`, uint16; `id`, the number that was asked for; `read_id`, the one that was read, or NOTHING
    where there is no whole shard (the tokens are then all 0); and `fault`, empty, or one line on why they differ.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        """Open the split; every rank must call it.

        Args:
            folder: with index.json in it.
            options: of streaming.StreamingDataset.

        Raises:
            UserError: there is no usable index.json.
        """
        check_index(folder)
        with one_start_at_a_time():
            super().__init__(streams=[_LocalFiles(local=str(folder))], **options)
            own(self._shm_prefix_int, self)
        self._folder = folder
        columns = dict(zip(self.shards[0].column_names, self.shards[0].column_encodings, strict=True))
        _, _, width = columns["tokens"].split(":")  # by the contract ndarray:uint16:<width>; others are not read here
        self._blank = {"tokens": np.zeros(int(width), np.uint16)}
        # In memory that loader workers share, since each epoch has new ones.
        self._is_whole = multiprocessing.RawArray("b", self.num_shards)
        self._faults: dict[int, str] = {}
        if world_from_environment().is_main:
            self._warn_of_missing_hashes()

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Return a sample by its number, or the one that takes its place."""
        shard_id, offset = self.spanner[sample_id]
        sample = self._read(shard_id, offset)
        if sample is not None:
            return sample | {"id": int(sample_id), "read_id": int(sample_id), "fault": ""}
        for other in [*range(shard_id + 1, self.num_shards), *range(shard_id)]:
            other_offset = offset % max(1, self.shards[other].samples)
            sample = self._read(other, other_offset)
            if sample is not None:
                read_id = int(self.sample_offset_per_shard[other]) + other_offset
                return sample | {"id": int(sample_id), "read_id": read_id, "fault": self._faults[shard_id]}
        fault = f"none of the {self.num_shards} shards in {self._folder} is whole; {self._faults[shard_id]}"
        return {**self._blank, "id": int(sample_id), "read_id": NOTHING, "fault": fault}

    def _read(self, shard_id: int, offset: int) -> dict[str, Any] | None:
        """Return a sample of a shard, or None if the shard is at fault or empty."""
        shard = self.shards[shard_id]
        if not self._is_whole[shard_id] and not self._check(shard_id):
            return None
        try:
            return shard.get_item(offset)
        except Exception as error:  # whatever a file that was damaged meanwhile, or had no hash, makes of the reader
            self._is_whole[shard_id] = 0
            named = self._folder / shard.file_pairs[0][0].basename
            self._faults[shard_id] = shard_fault(self._folder, shard) or f"{named} cannot be read ({_reason(error)})"
            return None

    def _check(self, shard_id: int) -> bool:
        if shard_id not in self._faults and self.shards[shard_id].samples:
            fault = shard_fault(self._folder, self.shards[shard_id])
            if fault is None:
                self._is_whole[shard_id] = 1
            else:
                self._faults[shard_id] = fault
        return bool(self._is_whole[shard_id])

    def _warn_of_missing_hashes(self) -> None:
        files = [info for shard in self.shards for pair in shard.file_pairs for info in pair if info is not None]
        without = [info.basename for info in files if _hash_of(info.hashes) is None]
        if without:
            logger.warning(
                "%s has no known hash for %d of %d files (%s, ...): only their sizes are checked",
                self._folder / INDEX, len(without), len(files), without[0],
            )  # fmt: skip


class _LocalFiles(_Stream):
    """All shards are taken to be there.

    Streaming would fetch a missing one, without knowing from where: its thread dies, and the epoch ends early and in
    silence, or other processes wait for it without end. It would also delete a decompressed shard whose compressed form
    is gone.
    """

    def __init__(self, *, local: str) -> None:
        super().__init__(local=local)
        self._tried: set[str] = set()

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
                    _decompress(Path(self.local), raw_info, zip_info, compression=shard.compression)
        return 0


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
        raise UserError(f"{path} cannot be read ({_reason(error)}); write the shards again") from error
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
            fault = _decompress(folder, raw_info, zip_info, compression=shard.compression)
        if fault is not None:
            return fault
    return None


def file_fault(folder: Path, info: Any) -> str | None:
    """Return how a file differs from its entry in index.json (basename, bytes, hashes), in one line, or None."""
    path, algorithm = folder / info.basename, _hash_of(info.hashes)
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
        return f"{path} cannot be read ({_reason(error)})"
    if found != info.hashes[algorithm]:
        return f"{path} has the {algorithm} {found}, its index says {info.hashes[algorithm]}"
    return None


def _decompress(folder: Path, raw_info: Any, zip_info: Any, *, compression: str) -> str | None:
    """Make the decompressed file of a shard, whole or not at all; return why that cannot be, or None."""
    fault = file_fault(folder, zip_info)
    if fault is not None:
        return fault
    compressed, raw = folder / zip_info.basename, folder / raw_info.basename
    try:
        data = streaming.base.compression.decompress(compression, compressed.read_bytes())
    except Exception as error:  # each algorithm has its own
        return f"{compressed} cannot be decompressed ({_reason(error)})"
    algorithm = _hash_of(raw_info.hashes)
    if len(data) != raw_info.bytes:
        return f"{compressed} holds {len(data)} bytes, its index says {raw_info.bytes}"
    if algorithm is not None:
        found = _constructor(algorithm)(data).hexdigest()
        if found != raw_info.hashes[algorithm]:
            return f"{compressed} holds the {algorithm} {found}, its index says {raw_info.hashes[algorithm]}"
    partial = raw.with_name(f".{raw.name}.{uuid.uuid4().hex}")  # others may do the same, on other machines too
    try:
        partial.write_bytes(data)
        partial.replace(raw)
    except OSError as error:
        return f"{raw} cannot be written ({_reason(error)})"
    finally:
        with suppress(OSError):
            partial.unlink()
    return None


def _hash_of(hashes: Mapping[str, str]) -> str | None:
    """Return the first algorithm of an index's hashes that is known here."""
    known = xxhash.algorithms_available | hashlib.algorithms_guaranteed
    return next((name for name in sorted(hashes) if name in known and not name.startswith("shake_")), None)


def _constructor(algorithm: str) -> Callable[..., Any]:
    return getattr(xxhash if algorithm in xxhash.algorithms_available else hashlib, algorithm)


def _reason(error: Exception) -> str:
    """Return why something failed, in one line."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split()) or type(error).__name__
