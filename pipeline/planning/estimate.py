"""The estimate for a run on a cluster: time, cost, energy, checkpoints, failures, storage; and the plan as a dict."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from common.command_line import UserError
from common.wording import counted
from pipeline.config.model import ModelConfig
from pipeline.model.formulas import Flops, parameter_count, training_flops
from pipeline.planning.alternatives import Setup
from pipeline.planning.clusters import SOURCES, Cluster, usable_bytes
from pipeline.planning.failures import FailureModel, best_interval_s, expected_goodput
from pipeline.planning.memory import Memory

STATE_BYTES = 12  # of a checkpoint, per parameter: fp32 value and Adam's two moments
TOKEN_BYTES = 2  # in a shard, as uint16
DEFAULT_LOOKAHEAD = 8
HOUR_S, DAY_S = 3600, 86_400
LEAST_GOODPUT = 0.01  # below this, the days and the cost of a run are meaningless


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run's needs and costs. Goodput is the share of the wall time that makes progress."""

    parameters: int
    flops_per_token: Flops
    tokens_per_s: float
    mfu: float
    step_s: float
    steps: int
    days: float  # of wall time, failures included
    gpu_hours: float
    energy_kwh: float
    usd: float
    checkpoint_bytes: int
    checkpoint_write_s: float
    checkpoint_stall_s: float
    checkpoint_interval_s: float
    checkpoint_every_steps: int  # the best interval, in steps
    checkpoints_on_disk_bytes: int
    failures: float  # expected number in the whole run
    mtbf_s: float
    goodput: float  # with the best interval between checkpoints
    goodput_as_configured: float  # with the recipe's interval
    shard_bytes: int  # if each token is read once
    read_bytes_per_s: float  # by all nodes together


def estimate(setup: Setup, cluster: Cluster) -> Estimate:
    """Return the estimate for a run with this setup that saves checkpoints at the best interval.

    Raises:
        UserError: under the assumptions, the run fails so often that it makes no progress.
    """
    config, assumed = setup.config, cluster.assumed
    step_s, world = setup.time.total_s, cluster.world_size
    run = failure_model(config.model, cluster, asynchronous=config.checkpoint.asynchronous)
    interval_s = max(best_interval_s(run), run.lag_s)  # a save waits for the previous one
    every_steps = max(1, round(interval_s / step_s))
    goodput = expected_goodput(run, interval_s=every_steps * step_s)
    if goodput < LEAST_GOODPUT:
        raise UserError(
            f"the run makes no progress: on {counted(world, 'GPU')} it fails every {run.mtbf_s:,.3g} s, each failure"
            f" costs {run.restart_s:,.3g} s until the next step, and a step takes {step_s:,.3g} s; check --assume"
            " mtbf_gpu_hours, restart_s and checkpoint_GB_per_s_per_node, or use fewer GPUs"
        )
    tokens_per_s = setup.tokens_per_s
    wall_s = config.total_steps * step_s / goodput
    gpu_hours = wall_s / HOUR_S * world
    energy_kwh = gpu_hours * cluster.gpu.watts / 1000 * assumed.pue
    flops = training_flops(config.model, seq_len=config.data.seq_len)
    state = STATE_BYTES * parameter_count(config.model)
    window = TOKEN_BYTES * (config.data.seq_len + DEFAULT_LOOKAHEAD) / config.data.seq_len
    return Estimate(
        parameters=parameter_count(config.model),
        flops_per_token=flops,
        tokens_per_s=tokens_per_s,
        mfu=tokens_per_s * flops.total / (setup.peak_flops * world),
        step_s=step_s,
        steps=config.total_steps,
        days=wall_s / DAY_S,
        gpu_hours=gpu_hours,
        energy_kwh=energy_kwh,
        usd=gpu_hours * assumed.usd_per_gpu_hour + energy_kwh * assumed.usd_per_kwh,
        checkpoint_bytes=state,
        checkpoint_write_s=write_s(config.model, cluster),
        checkpoint_stall_s=run.stall_s,
        checkpoint_interval_s=interval_s,
        checkpoint_every_steps=every_steps,
        checkpoints_on_disk_bytes=state * (config.checkpoint.keep + 1),
        failures=wall_s / run.mtbf_s,
        mtbf_s=run.mtbf_s,
        goodput=goodput,
        goodput_as_configured=expected_goodput(run, interval_s=config.checkpoint.every_steps * step_s),
        shard_bytes=math.ceil(config.train.total_tokens * window),
        read_bytes_per_s=tokens_per_s * window,
    )


def write_s(model: ModelConfig, cluster: Cluster) -> float:
    """Return the seconds that all nodes together take to write a checkpoint."""
    rate = cluster.assumed.checkpoint_GB_per_s_per_node * 1e9 * cluster.n_nodes
    return STATE_BYTES * parameter_count(model) / rate


def failure_model(model: ModelConfig, cluster: Cluster, *, asynchronous: bool) -> FailureModel:
    """Return how the run fails and saves; an asynchronous save interrupts training only for the copy to the host."""
    assumed, writing = cluster.assumed, write_s(model, cluster)
    copying = STATE_BYTES * parameter_count(model) / cluster.world_size / (assumed.host_GB_per_s * 1e9)
    return FailureModel(
        mtbf_s=assumed.mtbf_gpu_hours * HOUR_S / cluster.world_size,
        stall_s=copying if asynchronous else copying + writing,
        lag_s=writing if asynchronous else 0.0,
        restart_s=assumed.restart_s + writing,  # reading takes as long as writing
    )


def shortage_advice(setup: Setup, cluster: Cluster, setups: list[Setup]) -> str:
    """Return by how much a setup does not fit, and which setup would fit."""
    usable = usable_bytes(cluster.gpu, cluster.assumed)
    memory = setup.memory
    short = (
        f"does not fit: {memory.device / 1e9:.1f} GB on the fullest rank (at the moment '{memory.moment}'), "
        f"{(memory.device - usable) / 1e9:.1f} GB more than the {usable / 1e9:.1f} GB that a GPU ({cluster.gpu.name})"
        " has for tensors"
    )
    fitting = [other for other in setups if other.fits]
    if fitting:
        return f"{short}; the fastest setup that fits: {command_of(fitting[0])}"
    return f"{short}; no setup in the table fits: use more or larger GPUs, or a smaller model"


def command_of(setup: Setup) -> str:
    """Return the options and overrides that select a setup on the command line."""
    train, parallel = setup.config.train, setup.config.parallel
    return (
        f"--deepspeed_config ds_configs/{setup.json}.json train.micro_batch_size={train.micro_batch_size} "
        f"train.activation_checkpointing={str(train.activation_checkpointing).lower()} "
        f"parallel.pipeline_stages={parallel.pipeline_stages}"
    )


def as_dict(setup: Setup, setups: list[Setup], found: Estimate, cluster: Cluster) -> dict[str, Any]:
    """Return the whole plan as plain values for JSON."""
    return {
        "fits": setup.fits,
        "usable_bytes": usable_bytes(cluster.gpu, cluster.assumed),
        "estimate": asdict(found),
        "chosen": _setup_dict(setup),
        "alternatives": [_setup_dict(other) for other in setups],
        "assumptions": {
            name: {"value": value, "source": SOURCES[name]} for name, value in asdict(cluster.assumed).items()
        },
        "cluster": {
            "n_nodes": cluster.n_nodes,
            "gpus_per_node": cluster.gpus_per_node,
            "gpu": asdict(cluster.gpu),
            "peak_flops": setup.peak_flops,
        },
    }


def _setup_dict(setup: Setup) -> dict[str, Any]:
    return {
        "json": setup.json,
        "micro_batch_size": setup.config.train.micro_batch_size,
        "activation_checkpointing": setup.config.train.activation_checkpointing,
        "pipeline_stages": setup.config.parallel.pipeline_stages,
        "fits": setup.fits,
        "tokens_per_s": setup.tokens_per_s,
        "memory": _memory_dict(setup.memory),
        "moments": [_memory_dict(memory) for memory in setup.moments],
        "step": {**asdict(setup.time), "limit": setup.time.limit()},
    }


def _memory_dict(memory: Memory) -> dict[str, Any]:
    return {"moment": memory.moment, "host": memory.host, **memory.parts()}
