"""Shards on disks that fail: streaming's data set, which trusts no file before it has seen its bytes.

Before the first sample of a shard, its file is compared with index.json: size and hash. What is missing, cut off,
unreadable or changed is at fault; the windows of the next whole shard, in cyclic order, take the place of its own, so
that steps keep their shape, and the sample says so. Nothing is raised where a loader worker would die of it; what to do
about a fault is the training loop's to decide.

Where the files come from is for `shard_streams`. A compressed shard lies beside its decompressed form, which is made
when first needed; if that is damaged, as a kill or a power cut in the middle may leave it, it is made again. A shard in
S3 whose copy here is damaged, or was removed to make room, is fetched again; if that fails, it is at fault.

Importing this module imports streaming, which takes seconds: import it late.
"""

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np

from common.command_line import UserError
from common.mds import streaming
from common.s3 import S3Path
from common.shard_format import INDEX, file_fault, hash_algorithm, read_index
from pipeline.data.batches import NOTHING
from pipeline.data.shared_memory import one_start_at_a_time, own
from pipeline.data.storage import LocalFiles, RemoteFiles, bytes_read_from_at_a_time, check_cache_limit
from pipeline.data.verify import reason_of, shard_fault
from pipeline.runtime.logs import logger
from pipeline.runtime.world import world_from_environment

_FETCHES = 2  # of a shard, if the first is not as its hash says, or was another process's and failed
_READS = 8  # of a shard that other processes remove from a full cache
_Dataset: Any = streaming.StreamingDataset  # a name that a type checker takes for a base class


class ShardFolder(_Dataset):
    """The samples of one split, on a disk, or fetched to one.

    A sample has its `tokens`, uint16; `id`, the number that was asked for; `read_id`, the one that was read, or NOTHING
    where there is no whole shard (the tokens are then all 0); and `fault`, empty, or one line on why they differ.
    """

    def __init__(
        self, folder: Path, *, remote: S3Path | None = None, cache_limit: int | None = None, **options: Any
    ) -> None:
        """Open the split; every rank must call it.

        Args:
            folder: with index.json in it.
            remote: where shards are fetched from that are not in the folder; None if all must be.
            cache_limit: bytes of fetched shards at most, but for those on their way; None keeps all.
            options: of streaming.StreamingDataset.

        Raises:
            UserError: there is no usable index.json, or the limit is too low for its shards.
        """
        if not sum(entry["samples"] for entry in read_index(folder)):
            raise UserError(f"{folder / INDEX} names no samples; write the shards again")
        if remote is not None and cache_limit is not None:
            check_cache_limit(folder, cache_limit)
        self._stream = LocalFiles(local=str(folder)) if remote is None else RemoteFiles(remote, local=str(folder))
        with one_start_at_a_time():
            super().__init__(streams=[self._stream], cache_limit=cache_limit if remote is not None else None, **options)
            own(self._shm_prefix_int, self)
        self._folder, self._remote = folder, remote
        columns = dict(zip(self.shards[0].column_names, self.shards[0].column_encodings, strict=True))
        _, _, width = columns["tokens"].split(":")  # by the contract ndarray:uint16:<width>; others are not read here
        self._blank = {"tokens": np.zeros(int(width), np.uint16)}
        # In memory that loader workers share, since each epoch has new ones.
        self._is_whole = multiprocessing.RawArray("b", self.num_shards)
        self._faults: dict[int, str] = {}
        if world_from_environment().is_main:
            self._warn_of_missing_hashes()
            if self.cache_limit and options.get("shuffle"):
                self._warn_of_small_cache(options)

    def get_item(self, sample_id: int, retry: int = 7) -> dict[str, Any]:
        """Return a sample by its number, or the one that takes its place."""
        shard_id, offset = self.spanner[sample_id]
        sample = self._read(shard_id, offset)
        if sample is not None:
            return sample | {"id": int(sample_id), "read_id": int(sample_id), "fault": ""}
        for other in [*range(shard_id + 1, self.num_shards), *range(shard_id)]:
            if self._stream.is_cut_off:  # to ask for thousands of shards, one after the other, would take days
                return {**self._blank, "id": int(sample_id), "read_id": NOTHING, "fault": self._faults[shard_id]}
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
        for n_left in reversed(range(1 if self._remote is None else _READS)):
            if not self._is_whole[shard_id] and not self._check(shard_id):
                return None
            try:
                return shard.get_item(offset)
            except Exception as error:  # whatever a file, damaged meanwhile or without a hash, makes of the reader
                self._is_whole[shard_id] = 0
                if n_left == 0 or not isinstance(error, FileNotFoundError):  # else it made room for another one
                    named = self._folder / shard.file_pairs[0][0].basename
                    self._faults[shard_id] = self._fault_of(shard_id) or f"{named} cannot be read ({reason_of(error)})"
                    return None
        return None

    def _check(self, shard_id: int) -> bool:
        if shard_id not in self._faults and self.shards[shard_id].samples:
            fault = self._fault_of(shard_id)
            if fault is None:
                self._is_whole[shard_id] = 1
            else:
                self._faults[shard_id] = fault
        return bool(self._is_whole[shard_id])

    def _fault_of(self, shard_id: int) -> str | None:
        """Return what is wrong with a shard, or None; one that can be fetched is, if it is not here or damaged."""
        shard = self.shards[shard_id]
        if self._remote is None:
            return shard_fault(self._folder, shard)
        (raw_info, _), *_ = shard.file_pairs
        for _ in range(_FETCHES):
            if not (self._folder / raw_info.basename).exists():
                self.prepare_shard(shard_id)
        fault = self._file_fault(raw_info)
        if fault is not None and (self._folder / raw_info.basename).exists():
            self.evict_shard(shard_id)
            self.prepare_shard(shard_id)
            fault = self._file_fault(raw_info)
        return fault and self._stream.faults.get(raw_info.basename, fault)

    def _file_fault(self, info: Any) -> str | None:
        return file_fault(self._folder / info.basename, n_bytes=info.bytes, hashes=info.hashes)

    def _warn_of_small_cache(self, options: dict[str, Any]) -> None:
        world = world_from_environment()
        needed = self._stream.get_index_size() + bytes_read_from_at_a_time(
            sum(shard.get_raw_size() for shard in self.shards), n_windows=self.num_samples,
            canonical_nodes=options["num_canonical_nodes"], shuffle_block_size=options["shuffle_block_size"],
            n_nodes=world.world_size // world.local_world_size,
        )  # fmt: skip
        if self.cache_limit < needed:
            logger.warning(
                "data.cache_limit_gb=%g is less than the %.2g that a node reads from at a time: shards are fetched"
                " again and again; raise it, or lower data.shuffle_block_size",
                self.cache_limit / 1e9, needed / 1e9,
            )  # fmt: skip

    def _warn_of_missing_hashes(self) -> None:
        files = [info for shard in self.shards for pair in shard.file_pairs for info in pair if info is not None]
        without = [info.basename for info in files if hash_algorithm(info.hashes) is None]
        if without:
            logger.warning(
                "%s has no known hash for %d of %d files (%s, ...): only their sizes are checked",
                self._folder / INDEX, len(without), len(files), without[0],
            )  # fmt: skip
