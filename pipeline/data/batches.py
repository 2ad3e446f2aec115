"""From shards to batches: read windows with mosaicml-streaming, cut them into tokens and targets, resume exactly.

A window holds seq_len + lookahead tokens. Its first seq_len tokens are the inputs, and target i of position t is token
t + 1 + i, so every position has all its targets.

Streaming determines the order of the windows from the shuffle seed, algorithm and block size and from
num_canonical_nodes; the number of ranks does not matter. An epoch is a whole number of optimizer steps, because the
samples of a step that spans two epochs would depend on the number of ranks.

If a shard is damaged, windows of another shard are read in place of its windows (see `dataset`). `TrainingData` and
`ValidationData` count that in `Consumed`, which the training loop takes after each step.
"""

import dataclasses
import functools
import logging
import os
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.command_line import UserError
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.config.shard_folder import local_folder, remote_split
from pipeline.data.consumed import Account, Consumed
from pipeline.runtime.ranges import profiler_range
from pipeline.runtime.stop import end_with_parent_only

if TYPE_CHECKING:  # streaming takes seconds to import
    from pipeline.data.dataset import Window

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """One micro batch; both tensors are int64."""

    tokens_BT: Tensor
    """Token ids, shape (B, T)."""
    targets_BTN: Tensor
    """Targets of every head, shape (B, T, N): `targets_BTN[b, t, i]` is the id of token t + 1 + i."""
    ids_B: tuple[int, ...] = ()
    """Indices of the requested windows in their split; empty if there are none."""
    read_ids_B: tuple[int, ...] = ()
    """Indices of the windows that were read: others if a shard is damaged, NOTHING (-1) if none could be read."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on `device`."""
        tokens_BT, targets_BTN = (x.to(device, non_blocking=True) for x in (self.tokens_BT, self.targets_BTN))
        return dataclasses.replace(self, tokens_BT=tokens_BT, targets_BTN=targets_BTN)


def batch_from_windows(windows_BW: Tensor, *, seq_len: int, n_future_tokens: int) -> Batch:
    """Cut windows, shape (B, W >= seq_len + n_future_tokens), int64, into inputs and the targets of every head."""
    targets_BTN = windows_BW[:, 1:].unfold(1, n_future_tokens, 1)[:, :seq_len]
    return Batch(windows_BW[:, :seq_len], targets_BTN)


class TrainingData:
    """An endless iterator of `Batch` over the train split, epoch after epoch, whose position can be saved and restored.

    wait_s: total seconds that the training loop has waited in `next`.
    """

    def __init__(
        self,
        data: DataConfig,
        *,
        train: TrainConfig,
        n_future_tokens: int,
        vocab_size: int,
        ranks_per_replica: int = 1,
        device: torch.device = CPU,
    ) -> None:
        """Open the train split; every rank must call it.

        Args:
            data: which shards, and the order of their windows.
            train: the sizes of a micro batch and of a step.
            n_future_tokens: targets for each position.
            vocab_size: number of ids.
            ranks_per_replica: consecutive ranks that share a replica of the model, and so read the same samples.
            device: where batches go. They are copied as uint16, as they are stored: a quarter of the bytes, and
                without waiting.

        Raises:
            UserError: the shards cannot be used.
        """
        from common.mds import streaming
        from pipeline.data.dataset import ShardFolder

        self._windows_per_step = train.batch_tokens // data.seq_len
        self._cutter = _Cutter(seq_len=data.seq_len, n_future_tokens=n_future_tokens, device=device)
        # Streaming warns that batch sizes must account for ranks that share samples; its StreamingDataLoader does.
        logging.getLogger("streaming.base.dataset").addFilter(lambda record: "`replication`" not in record.getMessage())
        dataset = ShardFolder(
            local_folder(data) / "train",
            remote=remote_split(data, "train"),
            cache_limit=int(data.cache_limit_gb * 1e9) or None,
            vocab_size=vocab_size,
            least_tokens=data.seq_len + n_future_tokens,
            shuffle=True,
            shuffle_algo=data.shuffle_algo,
            shuffle_seed=data.shuffle_seed,
            shuffle_block_size=data.shuffle_block_size,
            num_canonical_nodes=data.num_canonical_nodes,
            batch_size=train.micro_batch_size,
            replication=ranks_per_replica if ranks_per_replica > 1 else None,
        )
        self._n_windows, self._num_canonical_nodes = dataset.num_samples, data.num_canonical_nodes
        self._windows_per_epoch = windows_per_epoch(
            dataset.num_samples,
            windows_per_step=self._windows_per_step,
            num_canonical_nodes=data.num_canonical_nodes,
        )
        assert self._windows_per_epoch, "a step needs more windows than there are, see `shard_folder.shard_problems`"
        self._loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=train.micro_batch_size,
            num_workers=data.num_workers,
            collate_fn=_collate,
            drop_last=True,
            worker_init_fn=functools.partial(end_with_parent_only, parent=os.getpid()),
        )
        self._resumed_at = 0  # windows of the current epoch before the position that was loaded
        self.wait_s = 0.0
        self._account = Account()
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
        """Return the position after the last batch as plain values, which are the same on every rank."""
        state = self._loader.state_dict()
        return {**state, "sample_in_epoch": max(state["sample_in_epoch"], self._resumed_at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; only before the first batch.

        Streaming refuses positions beyond the number of windows, but an epoch may be longer because it repeats some of
        them. In that case streaming gets an earlier position, and the batches in between are dropped.

        Raises:
            UserError: it is no position in this data.
        """
        _check_position(state, num_canonical_nodes=self._num_canonical_nodes)
        self._resumed_at = state["sample_in_epoch"]
        latest = self._n_windows // self._windows_per_step * self._windows_per_step
        self._loader.load_state_dict({**state, "sample_in_epoch": min(self._resumed_at, latest)})

    def take_consumed(self) -> Consumed:
        """Return what this rank has read, and the damage that it met, since the last call."""
        return self._account.take()

    def _all_epochs(self) -> Generator[Batch, None, None]:
        while True:
            for collated in self._loader:
                position = self._loader.state_dict()  # counts what all replicas have read, this batch included
                if self._resumed_at < position["sample_in_epoch"] <= self._windows_per_epoch:
                    self._account.add(
                        collated.ids, read_ids=collated.read_ids, faults=collated.faults, epoch=position["epoch"]
                    )
                    yield self._cutter.batch_of(collated)
            read = self.state_dict()["sample_in_epoch"]
            if read < self._windows_per_epoch:  # streaming reports this to nobody
                raise RuntimeError(f"the loader ended an epoch after {read} of {self._windows_per_epoch} windows")
            self._resumed_at = 0


def _check_position(state: Any, *, num_canonical_nodes: int) -> None:
    """Check a position that was read from a file.

    Raises:
        UserError: streaming could not resume there.
    """
    allowed = {
        "epoch": range(-1, 1 << 31), "sample_in_epoch": range(1 << 62), "shuffle_seed": range(1 << 63),
        "initial_physical_nodes": range(1, 1 << 31),
        "num_canonical_nodes": range(num_canonical_nodes, num_canonical_nodes + 1),
    }  # fmt: skip
    values = state if isinstance(state, dict) else {}
    wrong = [key for key in allowed if type(values.get(key)) is not int or values[key] not in allowed[key]]
    if wrong:
        found = ", ".join(f"{key}={values.get(key)!r:.40}" for key in wrong)
        raise UserError(f"the checkpoint's position in the data cannot be resumed: {found}; resume from an earlier one")


def windows_per_epoch(n_windows: int, *, windows_per_step: int, num_canonical_nodes: int) -> int:
    """Return the number of windows in an epoch of the train split: as many whole steps as streaming's windows fill.

    Streaming repeats windows until every canonical node has equally many.
    """
    dealt = num_canonical_nodes * -(-n_windows // num_canonical_nodes)
    return dealt // windows_per_step * windows_per_step


class ValidationData:
    """The first `n_windows` of the val split, dealt to the replicas; every iteration has the same batches."""

    def __init__(
        self,
        data: DataConfig,
        *,
        micro_batch_size: int,
        n_future_tokens: int,
        vocab_size: int,
        n_windows: int,
        replica: int,
        n_replicas: int,
        device: torch.device = CPU,
    ) -> None:
        """Open the val split; every rank must call it.

        Args:
            data: which shards.
            micro_batch_size: windows in a batch.
            n_future_tokens: targets for each position.
            vocab_size: number of ids.
            n_windows: number of windows that all replicas read together.
            replica: number of this rank's replica of the model.
            n_replicas: number of replicas.
            device: where batches go.

        Raises:
            UserError: the shards cannot be used.
        """
        from pipeline.data.dataset import ShardFolder

        self._mine, self._micro_batch_size = range(replica, n_windows, n_replicas), micro_batch_size
        self._cutter = _Cutter(seq_len=data.seq_len, n_future_tokens=n_future_tokens, device=device)
        self._dataset = ShardFolder(
            local_folder(data) / "val", remote=remote_split(data, "val"), vocab_size=vocab_size,
            least_tokens=data.seq_len + n_future_tokens, batch_size=micro_batch_size,
        )  # fmt: skip
        self._account = Account()

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._mine), self._micro_batch_size):
            wanted = self._mine[start : start + self._micro_batch_size]
            collated = _collate([self._dataset[index] for index in wanted])
            self._account.add(collated.ids, read_ids=collated.read_ids, faults=collated.faults)
            yield self._cutter.batch_of(collated)

    def take_consumed(self) -> Consumed:
        """Return the damage that this rank met since the last call."""
        return self._account.take()


class _Collated(NamedTuple):
    """The windows of a batch, as a loader worker hands them over; streaming counts the rows of the first field.

    Windows are an array because a tensor's memory is handed over through a connection of its own, which takes the
    reader longer than copying the few bytes of uint16.
    """

    windows_BW: NDArray[np.uint16]
    ids: list[int]
    read_ids: list[int]
    faults: list[str]


def _collate(windows: "Sequence[Window]") -> _Collated:
    return _Collated(
        windows_BW=np.stack([window.tokens_W for window in windows]),
        ids=[window.id for window in windows],
        read_ids=[window.read_id for window in windows],
        faults=list(dict.fromkeys(window.fault for window in windows if window.fault)),
    )


@dataclass(frozen=True, kw_only=True)
class _Cutter:
    """Moves windows to a device and cuts them into batches."""

    seq_len: int
    n_future_tokens: int
    device: torch.device

    def batch_of(self, collated: _Collated) -> Batch:
        windows_BW = torch.from_numpy(collated.windows_BW)
        if self.device.type == "cuda":
            windows_BW = windows_BW.pin_memory()
        windows_BW = windows_BW.to(self.device, non_blocking=True).long()
        batch = batch_from_windows(windows_BW, seq_len=self.seq_len, n_future_tokens=self.n_future_tokens)
        return dataclasses.replace(batch, ids_B=tuple(collated.ids), read_ids_B=tuple(collated.read_ids))
