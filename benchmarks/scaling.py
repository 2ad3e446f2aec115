"""Plans of the paper's large runs on 64, 256 and 1,024 H100, by formula alone.

    python -m benchmarks.scaling [--json FILE]

For each run and number of GPUs, the table has the fastest setup that fits in memory, without pipelines, under the
default assumptions of `pipeline.plan`. Goodput is given twice: by the formula, and as the mean of a simulated month
with failures (pipeline/planning/failures.py, seeds 1 to 20).
"""

from common.endings import exit_on_user_error

import argparse
import dataclasses
from collections.abc import Sequence
from statistics import mean
from typing import Any

from benchmarks.parts.harness import benchmark_parser, run_benchmark
from pipeline.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from pipeline.config.recipe import load_config
from pipeline.config.schema import Config
from pipeline.planning.alternatives import DS_CONFIGS, Setup, alternatives
from pipeline.planning.clusters import GPUS, Assumptions, Cluster
from pipeline.planning.estimate import DAY_S, estimate, failure_model
from pipeline.planning.failures import simulate

RECIPES = DS_CONFIGS.parent / "pipeline" / "recipes"
T1 = 10**12
# 7B_1T's batch of 1,792 sequences is not divisible by 1,024 ranks; the other recipes' 2,048 sequences are.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "7B, 200B tokens": ("7B_200B", {}),
    "7B, 1T tokens": ("7B_1T", {"batch_tokens": 8 * 2**20}),
    "13B, 200B tokens": ("13B_200B", {}),
    "13B, 1T tokens": ("13B_200B", {"total_tokens": T1}),
}
NODES = (8, 32, 128)
MONTH_S = 30 * DAY_S
SEEDS = range(1, 21)


def fastest(config: Config, cluster: Cluster) -> Setup:
    """Return the fastest setup that fits in memory, without pipelines."""
    values = load_deepspeed_config(DS_CONFIGS / "zero2_bf16.json")
    filled, _ = fill_deepspeed_config(values, config, data_ranks=cluster.world_size)
    return alternatives(config, filled, cluster, stages=(1,))[0]


def table() -> str:
    """Return the plans as a Markdown table."""
    lines = [
        "| run | GPUs | way | recomputation, micro batch | GB of a rank | tokens/s | MFU | days | 1,000 GPU-hours"
        " | limit | hidden communication"
        " | save every | goodput: formula, simulated | with the recipe's interval: formula, simulated |",
        "|---" * 14 + "|",
    ]
    for name, (recipe, changes) in RUNS.items():
        config = load_config(RECIPES / f"{recipe}.yaml")
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, **changes))
        for n_nodes in NODES:
            cluster = Cluster(n_nodes=n_nodes, gpus_per_node=8, gpu=GPUS["h100"], assumed=Assumptions())
            lines.append(_row(name, fastest(config, cluster), cluster))
    return "\n".join(lines)


def _row(name: str, setup: Setup, cluster: Cluster) -> str:
    found, train = estimate(setup, cluster), setup.config.train
    own_s = setup.config.checkpoint.every_steps * found.step_s
    failing = failure_model(setup.config.model, cluster, asynchronous=setup.config.checkpoint.asynchronous)
    simulated, simulated_own = (
        mean(simulate(failing, interval_s=interval_s, wall_s=MONTH_S, seed=seed).goodput for seed in SEEDS)
        for interval_s in (found.checkpoint_every_steps * found.step_s, own_s)
    )
    recompute = "yes" if train.activation_checkpointing else "no"
    return (
        f"| {name} | {cluster.world_size:,} | {setup.json} | {recompute}, {train.micro_batch_size} | "
        f"{setup.memory.device / 1e9:.1f} | {found.tokens_per_s:,.0f} | {found.mfu:.1%} | {found.days:.1f} | "
        f"{found.gpu_hours / 1000:.1f} | {setup.time.limit()} | "
        f"{setup.time.hidden_s / found.step_s:.0%} | {found.checkpoint_every_steps} steps | "
        f"{found.goodput:.2%}, {simulated:.2%} | {found.goodput_as_configured:.2%}, {simulated_own:.2%} |"
    )


def measure(_: argparse.Namespace) -> list[dict[str, str]]:
    """Print the table, and return its rows."""
    print(text := table())
    heading, _separator, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [dict(zip(heading, row, strict=True)) for row in rows]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    run_benchmark(benchmark_parser("benchmarks.scaling", description=__doc__), measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.scaling")
