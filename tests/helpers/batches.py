"""Small shards, runs on them, and their data: opened from a whole config, and kept open to the end of the test."""

import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, TrainConfig
from pipeline.data.batches import CPU, TrainingData, ValidationData

SEQ_LEN = 4


def write_split(
    folder: Path,
    *,
    sizes: Sequence[int],
    length: int,
    compression: str | None = None,
    hashes: Sequence[str] = ("xxh64",),
) -> None:
    """Write a split with one shard of each size, each in a folder of its own, as write_shards does.

    Window w holds the tokens 10 w, 10 w + 1, ..., 10 w + length - 1.
    """
    from common.mds import streaming

    shards: list[dict[str, Any]] = []
    window = 0
    for part, size in enumerate(sizes):
        with streaming.MDSWriter(
            out=str(folder / f"part-{part}"), columns={"tokens": f"ndarray:uint16:{length}"}, compression=compression,
            hashes=list(hashes),
        ) as writer:  # fmt: skip
            for _ in range(size):
                writer.write({"tokens": np.arange(10 * window, 10 * window + length, dtype=np.uint16)})
                window += 1
        (shard,) = json.loads((folder / f"part-{part}" / "index.json").read_text())["shards"]
        for key in ("raw_data", "zip_data"):
            if shard[key]:
                shard[key]["basename"] = f"part-{part}/{shard[key]['basename']}"
        shards.append(shard)
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def config_for(
    shards: Path,
    *,
    micro_batch_size: int = 4,
    num_workers: int = 0,
    shuffle_seed: int = 1,
    seq_len: int = SEQ_LEN,
    windows_per_step: int | None = None,
    num_canonical_nodes: int = 1,
) -> Config:
    """Return a run on `shards`; its optimizer step is one micro batch, unless `windows_per_step` is given."""
    return Config(
        model=ModelConfig(dim=8, n_layers=4, n_heads=2, n_future_tokens=2),
        data=DataConfig(
            shards=str(shards), seq_len=seq_len, num_workers=num_workers, shuffle_seed=shuffle_seed,
            num_canonical_nodes=num_canonical_nodes,
        ),
        train=TrainConfig(
            micro_batch_size=micro_batch_size, batch_tokens=(windows_per_step or micro_batch_size) * seq_len
        ),
    )  # fmt: skip


_OPENED: list[TrainingData] = []


def training_data(config: Config, *, device: torch.device = CPU) -> TrainingData:
    """Return a run's training data, which stays open until `close_training_data`, or the end of the process."""
    data = TrainingData(
        config.data, train=config.train, n_future_tokens=config.model.n_future_tokens,
        vocab_size=config.model.vocab_size, ranks_per_replica=config.parallel.ranks_per_replica, device=device,
    )  # fmt: skip
    _OPENED.append(data)
    return data


def close_training_data() -> None:
    """Stop the reading of all training data that this process has opened.

    Collecting a loader in the middle of an epoch waits 5 s for each of its workers, so they are stopped first.
    """
    for worker in multiprocessing.active_children():
        worker.terminate()
    while _OPENED:
        _OPENED.pop()._batches.close()


def validation_data(
    config: Config, *, n_windows: int, replica: int = 0, n_replicas: int = 1, device: torch.device = CPU
) -> ValidationData:
    """Return the validation data of one replica."""
    return ValidationData(
        config.data, micro_batch_size=config.train.micro_batch_size, n_future_tokens=config.model.n_future_tokens,
        vocab_size=config.model.vocab_size,
        n_windows=n_windows, replica=replica, n_replicas=n_replicas, device=device,
    )  # fmt: skip
