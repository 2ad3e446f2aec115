"""A small run to monitor, a clock that tests set, and a reader of metrics.jsonl."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, RunConfig, TrainConfig
from pipeline.monitoring import monitor
from pipeline.monitoring.monitor import Monitor
from pipeline.monitoring.sinks import console
from pipeline.monitoring.sinks.sink import Sink
from pipeline.runtime.world import World

CPU = torch.device("cpu")
MAIN = World(rank=0, local_rank=0, world_size=2, local_world_size=2)


class Clock:
    """`time.perf_counter` under the test's control."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        for module in (monitor, console):
            monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now_s))


def config_in(directory: Path) -> Config:
    """Return the config of a small run in `directory`."""
    return Config(
        run=RunConfig(dir=str(directory), name="try"),
        model=ModelConfig(dim=16, n_layers=6, n_heads=2, vocab_size=50, n_future_tokens=2, multiple_of=8),
        data=DataConfig(seq_len=32),
        train=TrainConfig(total_tokens=20_000, batch_tokens=512, micro_batch_size=4),
    )


def monitor_of(config: Config, *, sinks: list[Sink], step: int = 0, peak_flops: float | None = None) -> Monitor:
    """Return the monitor of a run on the CPU."""
    return Monitor(
        config.train, model=config.model, seq_len=config.data.seq_len, sinks=sinks, device=CPU, step=step,
        peak_flops=peak_flops,
    )  # fmt: skip


def jsonl(path: Path) -> list[dict[str, float]]:
    """Return the objects of a file with one on each line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
