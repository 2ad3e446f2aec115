"""Reads training data on real ranks and keeps which windows each step had; started by test_samples.py under torchrun.

usage: samples.py OUT.json READINGS.json     READINGS: objects with the fields of `Reading`
"""

import json
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist

from pipeline.config import Config, DataConfig, ModelConfig, ParallelConfig, TrainConfig
from pipeline.data import TrainingData
from pipeline.distributed import world_from_environment

SEQ_LEN, LOOKAHEAD, SEQUENCES = 4, 3, 16


_OPENED: list[TrainingData] = []  # collecting a loader in mid-epoch takes 5 s a worker; the process's end is at once


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Some steps of a run.

    sharers: ranks of one replica.  position: where to start, or None; steps: how many to read.
    """

    shards: str
    sharers: int
    micro_batch_size: int
    num_workers: int
    num_canonical_nodes: int
    steps: int
    position: dict[str, Any] | None = None


def read(reading: Reading, *, rank: int, world_size: int) -> dict[str, Any]:
    """Return every rank's windows by step, and the position afterwards."""
    config = Config(
        model=ModelConfig(dim=8, n_layers=4, n_heads=2, n_future_tokens=2),
        data=DataConfig(
            shards=reading.shards, seq_len=SEQ_LEN, num_workers=reading.num_workers,
            num_canonical_nodes=reading.num_canonical_nodes,
        ),
        train=TrainConfig(micro_batch_size=reading.micro_batch_size, batch_tokens=SEQUENCES * SEQ_LEN),
        parallel=ParallelConfig(pipeline_stages=reading.sharers),
    )  # fmt: skip
    data = TrainingData(config)
    _OPENED.append(data)
    if reading.position is not None:
        data.load_state_dict(reading.position)
    n_micro_batches = config.accumulation_steps(world_size // reading.sharers)
    steps = [
        [window for batch in islice(data, n_micro_batches) for window in batch.tokens_BT[:, 0].tolist()]
        for _ in range(reading.steps)
    ]
    by_rank: list[list[list[int]]] = [[]] * world_size
    dist.all_gather_object(by_rank, steps)
    return {"windows": by_rank, "position": data.state_dict()}


def main() -> None:
    """Do every reading in this one process."""
    world = world_from_environment()
    dist.init_process_group("gloo")
    readings = [Reading(**values) for values in json.loads(Path(sys.argv[2]).read_text())]
    results = [read(reading, rank=world.rank, world_size=world.world_size) for reading in readings]
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
