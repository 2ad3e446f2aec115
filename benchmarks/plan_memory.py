"""The predicted memory of a rank (pipeline/planning/memory.py) beside the memory that DeepSpeed allocates on CPU ranks.

    python -m benchmarks.plan_memory [--ranks 1 2] [--stages 1 2] [--n 1 4] [--json FILE]

Each case trains a small model for two optimizer steps under the real engine, and counts every storage that operators
return while it lives (benchmarks/parts/storage_log.py). The measured figure is the peak of the second step on the rank
with the most memory. Buckets and ZeRO-3's limits are scaled down to the model; at their usual sizes they would hide
everything else. On the CPU, offloaded state lies in the same memory as the rest, so device and host are added.
"""

from common.endings import exit_on_user_error

import argparse
import gc
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.parts.harness import REPOSITORY, LiveTable, benchmark_parser, run_benchmark
from benchmarks.parts.ranks import on_ranks
from pipeline.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, ParallelConfig, TrainConfig
from pipeline.planning.memory import moments
from pipeline.planning.mode import mode_of

JSONS = sorted(path.stem for path in (REPOSITORY / "ds_configs").glob("*.json"))
PIPELINE_JSONS = ("zero0_fp32", "zero1_fp32", "zero1_bf16")
SMALL_LIMITS = {
    "reduce_bucket_size": 100_000,
    "stage3_prefetch_bucket_size": 50_000,
    "stage3_param_persistence_threshold": 1_000,
    "stage3_max_live_parameters": 300_000,
    "stage3_max_reuse_distance": 300_000,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One training setup."""

    json: str
    """Name of a file of ds_configs/."""
    ranks: int = 2
    stages: int = 1
    n_future_tokens: int = 4
    activation_checkpointing: bool = False
    micro_batch_size: int = 2

    @property
    def config(self) -> Config:
        """The recipe, with two micro batches for each pipeline stage in a step."""
        replicas, seq_len = self.ranks // self.stages, 128
        return Config(
            model=ModelConfig(
                dim=128, n_layers=8, n_heads=4, vocab_size=2048, multiple_of=64, n_future_tokens=self.n_future_tokens
            ),
            data=DataConfig(seq_len=seq_len),
            train=TrainConfig(
                total_tokens=10**9,
                batch_tokens=replicas * 2 * self.stages * self.micro_batch_size * seq_len,
                micro_batch_size=self.micro_batch_size,
                activation_checkpointing=self.activation_checkpointing,
            ),
            parallel=ParallelConfig(pipeline_stages=self.stages),
        )  # fmt: skip

    @property
    def deepspeed_config(self) -> dict[str, Any]:
        """The filled JSON, with limits in proportion to the model."""
        values = load_deepspeed_config(REPOSITORY / "ds_configs" / f"{self.json}.json")
        if values["zero_optimization"]["stage"]:
            values["zero_optimization"].update(SMALL_LIMITS)
        filled, _ = fill_deepspeed_config(values, self.config, data_ranks=self.ranks // self.stages)
        return filled


def cases(*, ranks: Sequence[int], stages: Sequence[int]) -> list[Case]:
    """Return every JSON on each number of ranks, and pipelines, for n = 1 and 4, without and with recomputation."""
    setups = [(1, json, n) for n in ranks for json in JSONS] + [(2, json, 2) for json in PIPELINE_JSONS]
    return [
        Case(json=json, ranks=n, stages=n_stages, n_future_tokens=heads, activation_checkpointing=recompute)
        for heads, recompute in itertools.product((1, 4), (False, True))
        for n_stages, json, n in setups
        if n_stages in stages and n in ranks
    ]


def predicted(case: Case) -> int:
    """Return the bytes that the plan predicts for the rank with the most memory while it trains."""
    mode = mode_of(case.deepspeed_config)
    return max(
        moment.device + moment.host
        for stage in range(case.stages)
        for moment in moments(case.config, mode, world_size=case.ranks, device="cpu", pipeline_stage=stage)
        if moment.moment != "start"
    )


def measured(wanted: Sequence[Case]) -> list[int]:
    """Return the measured bytes of the rank with the most memory, for cases of one number of ranks."""
    task = [asdict(case) for case in wanted]
    return on_ranks(measure_on_rank, task, ranks=wanted[0].ranks, DS_ACCELERATOR="cpu")


def measure_on_rank(task: list[dict[str, Any]]) -> list[int]:
    """Train each case; return the peak of its second step, in bytes, on the rank with the most memory."""
    import torch

    from pipeline.runtime.collectives import from_every_rank
    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    found = []
    with process_group(world_from_environment()):
        for values in task:
            found.append(max(from_every_rank(_second_step(Case(**values), torch.device("cpu")))))
            gc.collect()
    return found


def _second_step(case: Case, device: Any) -> int:
    from benchmarks.parts.batches import zero_batches
    from benchmarks.parts.storage_log import StorageLog
    from pipeline.training.build import build_engine

    config, log = case.config, StorageLog(vocab_size=case.config.model.vocab_size)
    batches = zero_batches(
        micro_batch_size=case.micro_batch_size, seq_len=config.data.seq_len, n_future_tokens=case.n_future_tokens
    )
    with log:
        engine = build_engine(config, case.deepspeed_config, device=device)
        engine.train_step(batches, learning_rate=1e-4)
        gc.collect()
        start = log.n_events
        engine.train_step(batches, learning_rate=1e-4)
    return log.peak(since=start).total


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure every case, print the table as it grows, and return the figures."""
    wanted = [
        case for case in cases(ranks=arguments.ranks, stages=arguments.stages) if case.n_future_tokens in arguments.n
    ]

    def launch_of(case: Case) -> tuple[int, int, int]:
        return case.ranks, case.stages, case.n_future_tokens

    table = LiveTable("ZeRO", "ranks", "stages", "n", "recomputation", "predicted, MB", "measured, MB", "difference")
    rows = []
    for _, group in itertools.groupby(sorted(wanted, key=launch_of), key=launch_of):
        launched = list(group)
        for case, n_bytes in zip(launched, measured(launched), strict=True):
            expected = predicted(case)
            rows.append({**asdict(case), "predicted": expected, "measured": n_bytes})
            numbers = map(str, (case.ranks, case.stages, case.n_future_tokens))
            figures = (f"{expected / 1e6:.2f}", f"{n_bytes / 1e6:.2f}", f"{expected / n_bytes - 1:+.1%}")
            table.add(case.json, *numbers, "yes" if case.activation_checkpointing else "no", *figures)
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    print(f"\n{len(rows)} cases; the largest difference is {worst:.1%}")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.plan_memory", description=__doc__)
    add = parser.add_argument
    add("--ranks", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="numbers of ranks (default: 1 2)")
    add("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="pipeline stages (default: 1 2)")
    add("--n", type=int, nargs="+", default=[1, 4], choices=[1, 4], help="numbers of heads (default: 1 4)")
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.plan_memory")
