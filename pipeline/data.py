"""Shards to batches: windows read by mosaicml-streaming, cut into tokens and targets, with a resumable position.

A window holds seq_len + lookahead tokens; its first seq_len are the inputs, and target i of position t is
token t + 1 + i, so every position has all its targets. Sample order is streaming's: fixed by the shuffle seed,
algorithm and block size and by num_canonical_nodes, whatever the number of ranks. An epoch is a whole number of
optimizer steps: where a step would span two epochs, its samples would depend on the number of ranks.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config


@dataclass(frozen=True)
class Batch:
    """One micro batch: token ids (B, T) and `targets_BTN[b, t, i]` = id of token t + 1 + i; both int64."""

    tokens_BT: Tensor
    targets_BTN: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        return Batch(self.tokens_BT.to(device, non_blocking=True), self.targets_BTN.to(device, non_blocking=True))


def batch_from_windows(windows_BW: Tensor, *, seq_len: int, n_future_tokens: int) -> Batch:
    """Cut windows (B, W >= seq_len + n_future_tokens), int64, into inputs and the targets of every head."""
    targets_BTN = windows_BW[:, 1:].unfold(1, n_future_tokens, 1)[:, :seq_len]
    return Batch(windows_BW[:, :seq_len], targets_BTN)


class TrainingData:
    """An endless iterator of `Batch` over the train split, epoch after epoch; knows and restores its position.

    `wait_s` adds up the seconds that the training loop has spent waiting in `next`.
    """

    def __init__(self, config: Config) -> None:
        from common.mds import streaming

        self._config = config
        sharers = config.parallel.ranks_per_replica
        # streaming warns to account for what ranks share; its StreamingDataLoader, whose position is kept, does
        logging.getLogger("streaming.base.dataset").addFilter(lambda record: "`replication`" not in record.getMessage())
        dataset = streaming.StreamingDataset(
            local=str(Path(config.data.shards) / "train"),
            shuffle=True,
            shuffle_algo=config.data.shuffle_algo,
            shuffle_seed=config.data.shuffle_seed,
            shuffle_block_size=config.data.shuffle_block_size,
            num_canonical_nodes=config.data.num_canonical_nodes,
            batch_size=config.train.micro_batch_size,
            replication=sharers if sharers > 1 else None,  # the ranks of one replica read the same samples
        )
        self._windows_per_epoch = windows_per_epoch(dataset.num_samples, config)
        assert self._windows_per_epoch, "a step needs more windows than there are; `inputs.shard_problems` says so"
        self._loader = streaming.StreamingDataLoader(
            dataset,
            batch_size=config.train.micro_batch_size,
            num_workers=config.data.num_workers,
            collate_fn=_stack_windows,
            pin_memory=torch.cuda.is_available(),
            drop_last=True,
        )
        self.wait_s = 0.0
        self._batches = self._all_epochs()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        start_s = time.perf_counter()
        batch = next(self._batches)
        self.wait_s += time.perf_counter() - start_s
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last batch, as plain values; the same on every rank."""
        return self._loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a saved position; before the first batch only."""
        self._loader.load_state_dict(state)

    def _all_epochs(self) -> Iterator[Batch]:
        seq_len, n_future_tokens = self._config.data.seq_len, self._config.model.n_future_tokens
        while True:
            for windows_BW in self._loader:
                # the position counts what all replicas have read, this batch included
                if self.state_dict()["sample_in_epoch"] <= self._windows_per_epoch:
                    yield batch_from_windows(windows_BW, seq_len=seq_len, n_future_tokens=n_future_tokens)


def windows_per_epoch(n_windows: int, config: Config) -> int:
    """Return how many windows of the train split an epoch has: whole steps of what streaming deals out.

    Streaming repeats windows until every canonical node has as many.
    """
    n_nodes = config.data.num_canonical_nodes
    dealt = n_nodes * -(-n_windows // n_nodes)
    per_step = config.train.batch_tokens // config.data.seq_len
    return dealt // per_step * per_step


class ValidationData:
    """The first `n_windows` of the val split, dealt to the replicas; the same batches at every iteration."""

    def __init__(self, config: Config, *, n_windows: int, replica: int, n_replicas: int) -> None:
        from common.mds import streaming

        self._config, self._mine = config, range(replica, n_windows, n_replicas)
        self._dataset = streaming.StreamingDataset(
            local=str(Path(config.data.shards) / "val"), batch_size=config.train.micro_batch_size
        )

    def __iter__(self) -> Iterator[Batch]:
        config = self._config
        for start in range(0, len(self._mine), config.train.micro_batch_size):
            samples = [self._dataset[index] for index in self._mine[start : start + config.train.micro_batch_size]]
            yield batch_from_windows(
                _stack_windows(samples), seq_len=config.data.seq_len, n_future_tokens=config.model.n_future_tokens
            )


def _stack_windows(samples: list[dict[str, Any]]) -> Tensor:
    """Collate streaming samples into windows (B, W), int64."""
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
