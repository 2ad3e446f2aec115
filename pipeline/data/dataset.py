"""A StreamingDataset that verifies each shard before first use, for shards on disks that fail or in S3.

Before the first window of a shard is read, the size and hash of its file are compared with index.json, and its ids with
the vocabulary. If the file is missing, truncated, unreadable or changed, or is not of this vocabulary, the shard is
damaged: windows of the next intact shard, in cyclic order,
replace its windows, so that steps keep their shape, and each `Window` says so. Nothing is raised, because an exception
would kill a loader worker; what to do about damage is up to the training loop.

`storage` decides where files come from. A compressed shard lies beside its decompressed form, which is made on first
use; if that form is damaged, because a process was killed or the power failed while it was written, it is made again. A
shard in S3 is fetched again if its local copy is damaged, or was removed to make room; if that fails, it counts as
damaged.

Importing this module imports streaming, which takes seconds: import it late.
"""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.command_line import UserError
from common.mds import streaming
from common.s3 import S3Path
from common.shard_format import INDEX, hash_algorithm, read_index
from common.wording import counted
from pipeline.data.sample_record import NOTHING
from pipeline.data.shared_memory import hold_name, one_start_at_a_time
from pipeline.data.storage import LocalFiles, RemoteFiles, bytes_read_from_at_a_time, check_cache_limit
from pipeline.data.verify import fault_of_file, fault_of_shard, reason_of
from pipeline.data.window_file import BadWindowError, fault_of_windows, layout_of, read_window
from pipeline.runtime.logs import logger
from pipeline.runtime.world import world_from_environment

_FETCHES = 2  # tries to fetch a shard, as the first may fail in another process, or bring a file with a wrong hash
_READS = 8  # tries to read a window, as other processes may remove its shard from a full cache
_Dataset: Any = streaming.StreamingDataset  # typed Any, so that a type checker takes it for a base class


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a split, or the window that was read in its place because its shard is damaged."""

    tokens_W: NDArray[np.uint16]
    """Token ids, shape (seq_len + lookahead,); zeros if nothing could be read."""
    id: int
    """Index of the requested window in the split."""
    read_id: int
    """Index of the window that was read, or NOTHING."""
    fault: str = ""
    """Why the indices differ, in one line; empty if they do not."""


class ShardFolder(_Dataset):
    """The windows of one split, whose shards are on a disk, or are fetched to one."""

    def __init__(
        self, folder: Path, *, remote: S3Path | None = None, cache_limit: int | None = None,
        vocab_size: int = 1 << 16, least_tokens: int = 1, **options: Any,
    ) -> None:  # fmt: skip
        """Open the split; every rank must call it.

        Args:
            folder: the split's folder, with its index.json.
            remote: where shards are fetched from if they are not in the folder; None if all of them are there.
            cache_limit: bytes that fetched shards may take, not counting those that are arriving; None sets no limit.
            vocab_size: number of ids; a shard that holds others is damaged.
            least_tokens: tokens that a window must have.
            options: options of streaming.StreamingDataset.

        Raises:
            UserError: there is no usable index.json, its windows are too short, or the limit is too low for its shards.
        """
        entries = read_index(folder)
        if not sum(entry["samples"] for entry in entries):
            raise UserError(f"{folder / INDEX} names no samples; write the shards again")
        self._layouts = [layout_of(entry["column_names"], entry["column_sizes"]) for entry in entries]
        self._vocab_size, n_tokens = vocab_size, {layout.n_tokens for layout in self._layouts}
        if len(n_tokens) > 1 or min(n_tokens) < least_tokens:
            lengths = ", ".join(map(str, sorted(n_tokens)))
            raise UserError(
                f"{folder / INDEX} has windows of {lengths} tokens, but a run needs one length, {least_tokens} or more;"
                " write the shards again"
            )
        if remote is not None and cache_limit is not None:
            check_cache_limit(folder, cache_limit)
        self._stream = LocalFiles(local=str(folder)) if remote is None else RemoteFiles(remote, local=str(folder))
        with one_start_at_a_time():
            super().__init__(streams=[self._stream], cache_limit=cache_limit if remote is not None else None, **options)
            hold_name(self._shm_prefix_int, owner=self)
        self._folder, self._remote = folder, remote
        self._blank_W = np.zeros(n_tokens.pop(), np.uint16)
        # Shared memory, because every epoch has new loader workers.
        self._is_intact = multiprocessing.RawArray("b", self.num_shards)
        self._faults: dict[int, str] = {}
        if world_from_environment().is_main:
            self._warn_of_missing_hashes()
            if self.cache_limit and options.get("shuffle"):
                self._warn_of_small_cache(options)

    def get_item(self, sample_id: int, retry: int = 7) -> Window:
        """Return a window by its index, or the one that replaces it."""
        wanted = int(sample_id)
        shard_id, offset = self.spanner[wanted]
        tokens_W = self._read(shard_id, offset)
        if tokens_W is not None:
            return Window(tokens_W=tokens_W, id=wanted, read_id=wanted)
        fault = self._faults[shard_id]
        for other in [*range(shard_id + 1, self.num_shards), *range(shard_id)]:
            if self._stream.is_unreachable:  # trying thousands of shards, one after the other, would take days
                return Window(tokens_W=self._blank_W, id=wanted, read_id=NOTHING, fault=fault)
            other_offset = offset % max(1, self.shards[other].samples)
            tokens_W = self._read(other, other_offset)
            if tokens_W is not None:
                read_id = int(self.sample_offset_per_shard[other]) + other_offset
                return Window(tokens_W=tokens_W, id=wanted, read_id=read_id, fault=fault)
        fault = f"no shard in {self._folder} is intact ({counted(self.num_shards, 'shard')} tried); {fault}"
        return Window(tokens_W=self._blank_W, id=wanted, read_id=NOTHING, fault=fault)

    def _read(self, shard_id: int, offset: int) -> NDArray[np.uint16] | None:
        """Return the tokens of a window in a shard, or None if the shard is damaged or empty."""
        shard = self.shards[shard_id]
        for n_left in reversed(range(1 if self._remote is None else _READS)):
            if not self._is_intact[shard_id] and not self._check(shard_id):
                return None
            path = self._folder / shard.file_pairs[0][0].basename
            try:
                return read_window(path, offset, layout=self._layouts[shard_id], vocab_size=self._vocab_size)
            except (OSError, BadWindowError) as error:  # the file has no hash, was damaged since, or was written so
                self._is_intact[shard_id] = 0
                # A file that is missing now was probably removed to make room for another one: fetch it again.
                if n_left == 0 or not isinstance(error, FileNotFoundError):
                    self._faults[shard_id] = self._fault_of(shard_id) or f"{path} cannot be read: {reason_of(error)}"
                    return None
        return None

    def _check(self, shard_id: int) -> bool:
        """Return True if a shard is intact; compare its files with the index if that was not done before."""
        if shard_id not in self._faults and self.shards[shard_id].samples:
            fault = self._fault_of(shard_id) or self._fault_in_windows(shard_id)
            if fault is None:
                self._is_intact[shard_id] = 1
            else:
                self._faults[shard_id] = fault
        return bool(self._is_intact[shard_id])

    def _fault_of(self, shard_id: int) -> str | None:
        """Return what is wrong with a shard, or None; if it can be fetched and is missing or damaged, fetch it."""
        shard = self.shards[shard_id]
        if self._remote is None:
            return fault_of_shard(self._folder, shard)
        (raw_info, _), *_ = shard.file_pairs
        path = self._folder / raw_info.basename
        for _ in range(_FETCHES):
            if not path.exists():
                self.prepare_shard(shard_id)
        fault = fault_of_file(path, raw_info)
        if fault is not None and path.exists():
            self.evict_shard(shard_id)
            self.prepare_shard(shard_id)
            fault = fault_of_file(path, raw_info)
        return fault and self._stream.faults.get(raw_info.basename, fault)

    def _fault_in_windows(self, shard_id: int) -> str | None:
        shard = self.shards[shard_id]
        path = self._folder / shard.file_pairs[0][0].basename
        try:
            return fault_of_windows(
                path, n_windows=shard.samples, layout=self._layouts[shard_id], vocab_size=self._vocab_size
            )
        except FileNotFoundError:  # removed since then to make room for another one; reading fetches it again
            return None
        except OSError as error:
            return f"{path} cannot be read: {reason_of(error)}"

    def _warn_of_small_cache(self, options: dict[str, Any]) -> None:
        world = world_from_environment()
        needed = self._stream.get_index_size() + bytes_read_from_at_a_time(
            sum(shard.get_raw_size() for shard in self.shards), n_windows=self.num_samples,
            canonical_nodes=options["num_canonical_nodes"], shuffle_block_size=options["shuffle_block_size"],
            n_nodes=world.world_size // world.local_world_size,
        )  # fmt: skip
        if self.cache_limit < needed:
            logger.warning(
                "data.cache_limit_gb=%g is less than the %.2g that a node reads from at a time, so shards will be"
                " fetched again and again; raise it, or lower data.shuffle_block_size",
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
