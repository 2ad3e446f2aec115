"""Reads training data on real ranks and saves the windows of each step; started by test_samples.py under torchrun.

With `run`, it also writes the record of samples, and continues, as a run does, from a position saved in the run
directory.

usage: samples.py OUT.json READINGS.json     READINGS: objects with the fields of `Reading`
"""

import json
import os
import signal
import sys
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch.distributed as dist
import yaml

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, LogConfig, ParallelConfig, RunConfig, TrainConfig
from pipeline.data.sample_record import SampleRecord
from pipeline.runtime.world import World, world_from_environment
from tests.helpers.batches import training_data

SEQ_LEN, LOOKAHEAD, SEQUENCES = 4, 3, 16


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Some steps of a run."""

    shards: str
    sharers: int
    """Ranks of one replica."""
    micro_batch_size: int
    num_workers: int
    num_canonical_nodes: int
    steps: int
    """Number of steps to read."""
    position: dict[str, Any] | None = None
    """Position to start from; None is the beginning."""
    run: str = ""
    """Run directory; empty records nothing."""
    saved_after: int = 0
    """Steps of this reading after which the position is saved in the run directory; 0 does not save."""
    killed: bool = False
    """Whether SIGKILL ends all ranks afterwards, rank 0 in the middle of a line of the record."""


def read(reading: Reading, *, world: World) -> dict[str, Any]:
    """Return the windows of every rank by step, and the position afterwards."""
    world_size, run_dir = world.world_size, Path(reading.run)
    config = Config(
        model=ModelConfig(dim=8, n_layers=4, n_heads=2, n_future_tokens=2),
        data=DataConfig(
            shards=reading.shards, seq_len=SEQ_LEN, num_workers=reading.num_workers,
            num_canonical_nodes=reading.num_canonical_nodes,
        ),
        train=TrainConfig(micro_batch_size=reading.micro_batch_size, batch_tokens=SEQUENCES * SEQ_LEN),
        parallel=ParallelConfig(pipeline_stages=reading.sharers),
        run=RunConfig(dir=str(run_dir.parent), name=run_dir.name or "unrecorded"),
        log=LogConfig(samples=bool(reading.run)),
    )  # fmt: skip
    data = training_data(config)
    first_step, position = 1, reading.position
    if reading.run and (run_dir / "position.json").exists():
        first_step, position = json.loads((run_dir / "position.json").read_text())
    if position is not None:
        data.load_state_dict(position)
    n_micro_batches = config.accumulation_steps(world_size // reading.sharers)
    steps = []
    with SampleRecord(
        config.run_dir, log=config.log, ranks_per_replica=reading.sharers, world=world, resumed_step=first_step - 1
    ) as record:
        for step in range(first_step, first_step + reading.steps):
            batches = list(islice(data, n_micro_batches))
            steps.append([window for batch in batches for window in batch.tokens_BT[:, 0].tolist()])
            record.write(step, data.take_consumed().samples)
            if reading.saved_after and step == first_step + reading.saved_after - 1:
                dist.barrier()
                if world.is_main:
                    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
                    (run_dir / "position.json").write_text(json.dumps((step + 1, data.state_dict())))
        if reading.killed:
            if world.is_main:
                with (run_dir / "samples" / "rank_00000.jsonl").open("a") as file:
                    file.write('{"step":')
            dist.barrier()  # the first death ends all ranks, and rank 0 must have saved the position before
            os.kill(os.getpid(), signal.SIGKILL)
    by_rank: list[list[list[int]]] = [[]] * world_size
    dist.all_gather_object(by_rank, steps)
    return {"windows": by_rank, "position": data.state_dict()}


def main() -> None:
    """Do all readings in this one process."""
    world = world_from_environment()
    dist.init_process_group("gloo")
    readings = [Reading(**values) for values in json.loads(Path(sys.argv[2]).read_text())]
    results = [read(reading, world=world) for reading in readings]
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
