"""Other setups for the same recipe on the same machines, with memory and time of each; the fastest that fits is first.

The setups combine the JSONs of ds_configs/ that have the given precision with activation checkpointing on and off, and
several micro batch sizes and numbers of pipeline stages. Setups that a run would refuse are left out. Pipelines are
tried only with the recipe's own micro batch size, because each size needs its own cut into stages, which takes time.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.deepspeed import (
    Precision,
    deepspeed_problems,
    fill_deepspeed_config,
    load_deepspeed_config,
    precision,
)
from pipeline.config.ranks import batch_problems, parallel_problems
from pipeline.config.schema import Config
from pipeline.planning.clusters import Cluster, usable_bytes
from pipeline.planning.memory import Memory, fullest_of, moments_of_fullest_rank
from pipeline.planning.mode import mode_of
from pipeline.planning.step_time import StepTime, step_time

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
MICRO_BATCHES = (1, 2, 4, 8)
STAGES = (1, 2, 4, 8)


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One way to run a recipe: a DeepSpeed JSON and a config."""

    json: str  # name of the DeepSpeed JSON
    config: Config  # all other settings
    moments: tuple[Memory, ...]  # of the fullest rank, in the order of time
    time: StepTime
    fits: bool
    peak_flops: float  # of one GPU in the setup's precision, FLOP/s

    @property
    def memory(self) -> Memory:
        """Memory of the fullest rank at its fullest moment."""
        return fullest_of(self.moments)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second of the whole cluster while nothing fails."""
        return self.config.train.batch_tokens / self.time.total_s


def setup_of(config: Config, deepspeed_config: dict[str, Any], cluster: Cluster, *, name: str) -> Setup:
    """Return the memory and speed of a checked recipe with a filled DeepSpeed JSON called `name`."""
    mode = mode_of(deepspeed_config)
    moments = moments_of_fullest_rank(config, mode, world_size=cluster.world_size, device="cuda")
    return Setup(
        json=name,
        config=config,
        moments=moments,
        time=step_time(config, mode, cluster),
        fits=fullest_of(moments).device <= usable_bytes(cluster.gpu, cluster.assumed),
        peak_flops=cluster.peak_flops(mode.precision),
    )


def alternatives(
    config: Config, deepspeed_config: dict[str, Any], cluster: Cluster, *, stages: tuple[int, ...] = STAGES
) -> list[Setup]:
    """Return every setup that a run would accept: first those that fit, the fastest first; then the others by memory.

    Args:
        config: the recipe, checked.
        deepspeed_config: filled; all setups have its precision.
        cluster: where the recipe would run.
        stages: numbers of pipeline stages to try, beside the recipe's own.
    """
    found = [
        setup_of(other, values, cluster, name=name)
        for other in _configs(config, world_size=cluster.world_size, stages=stages)
        for name, values in _jsons(other, world_size=cluster.world_size, precision=precision(deepspeed_config))
    ]
    return sorted(found, key=lambda setup: (not setup.fits, setup.time.total_s if setup.fits else setup.memory.device))


def _configs(config: Config, *, world_size: int, stages: tuple[int, ...]) -> Iterator[Config]:
    own = config.parallel.pipeline_stages
    may_be_pipeline = config.parallel.sequence_parallel_size * config.parallel.tensor_parallel_size == 1
    for n_stages in sorted({*stages, own}) if may_be_pipeline else [own]:
        parallel = dataclasses.replace(config.parallel, pipeline_stages=n_stages)
        own_micro_batch = config.train.micro_batch_size
        for micro_batch in sorted({*MICRO_BATCHES, own_micro_batch}) if n_stages == 1 else [own_micro_batch]:
            for recompute in (False, True):
                train = dataclasses.replace(
                    config.train, micro_batch_size=micro_batch, activation_checkpointing=recompute
                )
                other = dataclasses.replace(config, train=train, parallel=parallel)
                data_ranks = max(1, world_size // parallel.ranks_per_replica)
                if not parallel_problems(other, world_size=world_size) + batch_problems(other, data_ranks=data_ranks):
                    yield other


def _jsons(config: Config, *, world_size: int, precision: Precision) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(DS_CONFIGS.glob(f"*_{precision}*.json")):
        values = load_deepspeed_config(path)
        if deepspeed_problems(values, config.parallel):
            continue
        filled, _ = fill_deepspeed_config(values, config, data_ranks=world_size // config.parallel.ranks_per_replica)
        yield path.stem, filled
