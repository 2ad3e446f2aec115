"""Shards to batches: windows read by mosaicml-streaming, cut into tokens and targets, with a resumable position.

A window holds seq_len + lookahead tokens; its first seq_len are the inputs, and target i of position t is
token t + 1 + i, so every position has all its targets. Sample order is streaming's: fixed by the shuffle seed,
algorithm and block size and by num_canonical_nodes, whatever the number of ranks. An epoch is a whole number of
optimizer steps: where a step would span two epochs, its samples would depend on the number of ranks.

Windows of a damaged shard come out as those of another (shards.py); a batch says which, and why.
"""

import dataclasses
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config.schema import Config
from pipeline.config.shard_folder import local_folder, remote_split
from pipeline.runtime.ranges import profiler_range

CPU = torch.device("cpu")
NOTHING = -1  # in place of the number of a window that was read, where no shard is whole
SampleId = int | tuple[int, int]  # the number of a window; or that, and of the one that was read in its place
EpochSamples = tuple[int, list[SampleId]]  # an epoch, and samples of it


@dataclass(frozen=True)
class Batch:
    """One micro batch: token ids (B, T) and `targets_BTN[b, t, i]` = id of token t + 1 + i; both int64.

    ids_B: the windows' numbers in their split; nothing where windows have none.
    read_ids_B: the numbers of those that were read, NOTHING (-1) if none could be. Where they differ, a shard is at
        fault.
    faults: one line for each such shard.
    """

    tokens_BT: Tensor
    targets_BTN: Tensor
    ids_B: tuple[int, ...] = ()
    read_ids_B: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def skipped_windows(self) -> int:
        """How many windows others took the place of."""
        return sum(asked != read for asked, read in zip(self.ids_B, self.read_ids_B, strict=True))

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        tokens_BT, targets_BTN = (x.to(device, non_blocking=True) for x in (self.tokens_BT, self.targets_BTN))
        return dataclasses.replace(self, tokens_BT=tokens_BT, targets_BTN=targets_BTN)


def batch_from_windows(windows_BW: Tensor, *, seq_len: int, n_future_tokens: int) -> Batch:
    """Cut windows (B, W >= seq_len + n_future_tokens), int64, into inputs and the targets of every head."""
    targets_BTN = windows_BW[:, 1:].unfold(1, n_future_tokens, 1)[:, :seq_len]
    return Batch(windows_BW[:, :seq_len], targets_BTN)


class TrainingData:
    """An endless iterator of `Batch` over the train split, epoch after epoch; knows and restores its position.

    What it has met on the way is handed over, and forgotten, by the `take_` methods.

    wait_s: seconds that the training loop has spent waiting in `next`, added up.

    Args:
        config: the run.
        device: where batches go, as the uint16 that they are stored in, a quarter of the bytes and without waiting.
    """

    def __init__(self, config: Config, *, device: torch.device = CPU) -> None:
        from common.mds import streaming
        from pipeline.data.dataset import ShardFolder

        self._config, self._device = config, device
        sharers = config.parallel.ranks_per_replica
        # streaming warns to account for what ranks share; its StreamingDataLoader, whose position is kept, does
        logging.getLogger("streaming.base.dataset").addFilter(lambda record: "`replication`" not in record.getMessage())
        dataset = ShardFolder(
            local_folder(config.data) / "train",
            remote=remote_split(config.data, "train"),
            cache_limit=int(config.data.cache_limit_gb * 1e9) or None,
            shuffle=True,
            shuffle_algo=config.data.shuffle_algo,
            shuffle_seed=config.data.shuffle_seed,
            shuffle_block_size=config.data.shuffle_block_size,
            num_canonical_nodes=config.data.num_canonical_nodes,
            batch_size=config.train.micro_batch_size,
            replication=sharers if sharers > 1 else None,  # the ranks of one replica read the same samples
        )
        self._windows_per_epoch = windows_per_epoch(dataset.num_samples, config)
        assert self._windows_per_epoch, "a step needs more windows than there are; see `shard_folder.shard_problems`"
        self._loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=config.train.micro_batch_size,
            num_workers=config.data.num_workers,
            collate_fn=_collate,
            drop_last=True,
        )
        self._n_windows = dataset.num_samples
        self._resumed_at = 0  # in the epoch under way
        self.wait_s = 0.0
        self._met = _Met()
        self._samples: list[EpochSamples] = []
        self._batches = self._all_epochs()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        with profiler_range("data"):
            batch = next(self._batches)
        self.wait_s += time.perf_counter() - start_s
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as plain values; the same on every rank."""
        state = self._loader.state_dict()
        return {**state, "sample_in_epoch": max(state["sample_in_epoch"], self._resumed_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; before the first batch only.

        An epoch has some windows twice, and streaming refuses positions beyond the number of windows. It is given an
        earlier one, and the batches between the two are left out.
        """
        self._resumed_at = state["sample_in_epoch"]
        per_step = _windows_per_step(self._config)
        within = self._n_windows // per_step * per_step
        self._loader.load_state_dict({**state, "sample_in_epoch": min(self._resumed_at, within)})

    def take_faults(self) -> list[str]:
        """Return one line for each shard that was first found at fault since the last call."""
        return self._met.take_faults()

    @property
    def nothing_left(self) -> bool:
        """Whether no shard is whole: what comes is no data."""
        return self._met.nothing_left

    def take_skipped_windows(self) -> int:
        """Return how many windows of shards at fault others took the place of on this rank since the last call."""
        return self._met.take_skipped_windows()

    def take_samples(self) -> list[EpochSamples]:
        """Return what this rank has consumed since the last call, by epoch, in order."""
        samples, self._samples = self._samples, []
        return samples

    def _all_epochs(self) -> Iterator[Batch]:
        while True:
            for collated in self._loader:
                # the position counts what all replicas have read, this batch included
                position = self._loader.state_dict()
                if self._resumed_at < position["sample_in_epoch"] <= self._windows_per_epoch:
                    batch = _batch_of(collated, self._config, device=self._device)
                    self._met.note(batch)
                    self._note_samples(position["epoch"], batch)
                    yield batch
            if (read := self.state_dict()["sample_in_epoch"]) < self._windows_per_epoch:  # streaming tells nobody
                raise RuntimeError(f"the loader ended an epoch after {read} of {self._windows_per_epoch} windows")
            self._resumed_at = 0

    def _note_samples(self, epoch: int, batch: Batch) -> None:
        ids: list[SampleId] = [
            asked if asked == read else (asked, read) for asked, read in zip(batch.ids_B, batch.read_ids_B, strict=True)
        ]
        if self._samples and self._samples[-1][0] == epoch:
            self._samples[-1][1].extend(ids)
        else:
            self._samples.append((epoch, ids))


def windows_per_epoch(n_windows: int, config: Config) -> int:
    """Return how many windows of the train split an epoch has: whole steps of what streaming deals out.

    Streaming repeats windows until every canonical node has as many.
    """
    n_nodes = config.data.num_canonical_nodes
    dealt = n_nodes * -(-n_windows // n_nodes)
    return dealt // _windows_per_step(config) * _windows_per_step(config)


def _windows_per_step(config: Config) -> int:
    return config.train.batch_tokens // config.data.seq_len


class ValidationData:
    """The first `n_windows` of the val split, dealt to the replicas; the same batches at every iteration."""

    def __init__(
        self, config: Config, *, n_windows: int, replica: int, n_replicas: int, device: torch.device = CPU
    ) -> None:
        from pipeline.data.dataset import ShardFolder

        self._config, self._mine = config, range(replica, n_windows, n_replicas)
        self._device = device
        self._dataset = ShardFolder(
            local_folder(config.data) / "val",
            remote=remote_split(config.data, "val"),
            batch_size=config.train.micro_batch_size,
        )
        self._met = _Met()

    def __iter__(self) -> Iterator[Batch]:
        per_batch = self._config.train.micro_batch_size
        for start in range(0, len(self._mine), per_batch):
            samples = [self._dataset[index] for index in self._mine[start : start + per_batch]]
            batch = _batch_of(_collate(samples), self._config, device=self._device)
            self._met.note(batch)
            yield batch

    def take_faults(self) -> list[str]:
        """Return one line for each shard that was first found at fault since the last call."""
        return self._met.take_faults()

    @property
    def nothing_left(self) -> bool:
        """Whether no shard is whole: what comes is no data."""
        return self._met.nothing_left


class _Met:
    """The faults that batches told of, each once, and the windows that they cost."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._new: list[str] = []
        self._skipped_windows = 0
        self.nothing_left = False

    def note(self, batch: Batch) -> None:
        new = [fault for fault in batch.faults if fault not in self._known]
        self._known.update(new)
        self._new += new
        self._skipped_windows += batch.skipped_windows
        self.nothing_left |= NOTHING in batch.read_ids_B

    def take_faults(self) -> list[str]:
        new, self._new = self._new, []
        return new

    def take_skipped_windows(self) -> int:
        taken, self._skipped_windows = self._skipped_windows, 0
        return taken


def _collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Collate samples of a `ShardFolder`; the first entry is windows (B, W), uint16, whose length streaming counts.

    They come from loader workers as an array: a tensor's memory is handed over by a connection of its own, which takes
    the reader longer than to copy the few bytes of uint16.
    """
    return {
        "windows_BW": np.stack([sample["tokens"] for sample in samples]),
        "ids_B": [sample["id"] for sample in samples],
        "read_ids_B": [sample["read_id"] for sample in samples],
        "faults": list(dict.fromkeys(sample["fault"] for sample in samples if sample["fault"])),
    }


def _batch_of(collated: dict[str, Any], config: Config, *, device: torch.device) -> Batch:
    windows_BW = torch.from_numpy(collated["windows_BW"])
    if device.type == "cuda":
        windows_BW = windows_BW.pin_memory()
    windows_BW = windows_BW.to(device, non_blocking=True).long()
    batch = batch_from_windows(windows_BW, seq_len=config.data.seq_len, n_future_tokens=config.model.n_future_tokens)
    ids_B, read_ids_B, faults = (tuple(collated[name]) for name in ("ids_B", "read_ids_B", "faults"))
    return dataclasses.replace(batch, ids_B=ids_B, read_ids_B=read_ids_B, faults=faults)
