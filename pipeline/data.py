"""Shards to batches: windows read by mosaicml-streaming, cut into tokens and targets, with a resumable position.

A window holds seq_len + lookahead tokens; its first seq_len are the inputs, and target i of position t is
token t + 1 + i, so every position has all its targets. Sample order is streaming's: fixed by the shuffle seed,
algorithm and block size and by num_canonical_nodes, whatever the number of ranks.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.config import Config
from pipeline.distributed import World


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
        self._loader = streaming.StreamingDataLoader(
            streaming.StreamingDataset(
                local=str(Path(config.data.shards) / "train"),
                shuffle=True,
                shuffle_algo=config.data.shuffle_algo,
                shuffle_seed=config.data.shuffle_seed,
                shuffle_block_size=config.data.shuffle_block_size,
                num_canonical_nodes=config.data.num_canonical_nodes,
                batch_size=config.train.micro_batch_size,
            ),
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
                yield batch_from_windows(windows_BW, seq_len=seq_len, n_future_tokens=n_future_tokens)


class ValidationData:
    """The first `n_windows` of the val split, dealt to the ranks; the same batches at every iteration."""

    def __init__(self, config: Config, *, n_windows: int, world: World) -> None:
        from common.mds import streaming

        self._config, self._n_windows, self._world = config, n_windows, world
        self._dataset = streaming.StreamingDataset(
            local=str(Path(config.data.shards) / "val"), batch_size=config.train.micro_batch_size
        )

    def __iter__(self) -> Iterator[Batch]:
        config = self._config
        mine = range(self._world.rank, self._n_windows, self._world.world_size)
        for start in range(0, len(mine), config.train.micro_batch_size):
            samples = [self._dataset[index] for index in mine[start : start + config.train.micro_batch_size]]
            yield batch_from_windows(
                _stack_windows(samples), seq_len=config.data.seq_len, n_future_tokens=config.model.n_future_tokens
            )


def _stack_windows(samples: list[dict[str, Any]]) -> Tensor:
    """Collate streaming samples into windows (B, W), int64."""
    return torch.from_numpy(np.stack([sample["tokens"] for sample in samples]).astype(np.int64))
