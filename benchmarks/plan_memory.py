"""Predicted memory of a rank (pipeline/planning/memory.py) beside what DeepSpeed's engines allocate on CPU ranks.

    python -m benchmarks.plan_memory [--ranks 1 2] [--stages 1 2] [--n 1 4] [--json FILE]

Each case trains a small model for two optimizer steps under the real engine, counting every storage that operators
return while it lives (benchmarks/memory.py). Measured is the most of the second step, on the fullest rank. Buckets and
ZeRO-3's limits are scaled down to the model, or nothing else would be seen beside them. On the CPU, what is offloaded
lies in the same memory as the rest, so the two are predicted together.
"""

import argparse
import gc
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import REPOSITORY, answer, on_ranks
from benchmarks.parts.outputs import check_json
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.deepspeed import fill_deepspeed_config, read_deepspeed_config
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
    """One way to run: a JSON of ds_configs/ by name, and what it is run with."""

    json: str
    ranks: int = 2
    stages: int = 1
    n_future_tokens: int = 4
    activation_checkpointing: bool = False
    micro_batch_size: int = 2

    @property
    def config(self) -> Config:
        """The recipe: two micro batches on each rank, or twice the stages."""
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
        values = read_deepspeed_config(REPOSITORY / "ds_configs" / f"{self.json}.json")
        if values["zero_optimization"]["stage"]:
            values["zero_optimization"].update(SMALL_LIMITS)
        filled, _ = fill_deepspeed_config(values, self.config, data_ranks=self.ranks // self.stages)
        return filled


def cases(*, ranks: Sequence[int], stages: Sequence[int]) -> list[Case]:
    """Return every JSON on each number of ranks, and pipelines, with n = 1 and 4, without and with recomputation."""
    ways = [(1, json, n) for n in ranks for json in JSONS] + [(2, json, 2) for json in PIPELINE_JSONS]
    return [
        Case(json=json, ranks=n, stages=n_stages, n_future_tokens=heads, activation_checkpointing=recompute)
        for heads, recompute in itertools.product((1, 4), (False, True))
        for n_stages, json, n in ways
        if n_stages in stages and n in ranks
    ]


def predicted(case: Case) -> int:
    """Return the bytes that the plan expects on the fullest rank while it trains."""
    mode = mode_of(case.deepspeed_config)
    return max(
        moment.device + moment.host
        for stage in range(case.stages)
        for moment in moments(case.config, mode, world_size=case.ranks, device="cpu", pipeline_stage=stage)
        if moment.moment != "start"
    )


def measured(wanted: Sequence[Case]) -> list[int]:
    """Return the bytes that the fullest rank had, for cases that all have the same number of ranks."""
    todo = [asdict(case) for case in wanted]
    return on_ranks("benchmarks.plan_memory", todo, ranks=wanted[0].ranks, DS_ACCELERATOR="cpu")


def measure_here(todo: Path) -> None:
    """Be one of the ranks: train each case, and let rank 0 answer with the most that any rank had."""
    import torch

    from pipeline.runtime.collectives import from_every_rank
    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    found, world = [], world_from_environment()
    with process_group(world):
        for values in json.loads(todo.read_text(encoding="utf-8")):
            found.append(max(from_every_rank(_second_step(Case(**values), torch.device("cpu")))))
            gc.collect()
    if world.is_main:
        answer(todo, found)


def _second_step(case: Case, device: Any) -> int:
    from benchmarks.memory import StorageLog
    from pipeline.training.engine import build_engine

    batches, log = _batches(case), StorageLog(vocab_size=case.config.model.vocab_size)
    with log:
        engine = build_engine(case.config, case.deepspeed_config, device=device)
        engine.train_step(batches, learning_rate=1e-4)
        gc.collect()
        start = log.n_events
        engine.train_step(batches, learning_rate=1e-4)
    return log.peak(since=start).total


def _batches(case: Case) -> Iterator[Any]:
    import torch

    from pipeline.data.batches import Batch

    shape = (case.micro_batch_size, case.config.data.seq_len)
    while True:
        targets = torch.zeros(*shape, case.n_future_tokens, dtype=torch.int64)
        yield Batch(torch.zeros(shape, dtype=torch.int64), targets)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    parser = command_parser("benchmarks.plan_memory", description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="default: 1 2")
    parser.add_argument("--stages", type=int, nargs="+", default=[1, 2], choices=[1, 2], help="default: 1 2")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4], choices=[1, 4], help="heads (default: 1 4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--todo", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.todo is not None:
        measure_here(arguments.todo)
        return
    check_json(arguments.json)
    rows = []
    wanted = [
        case for case in cases(ranks=arguments.ranks, stages=arguments.stages) if case.n_future_tokens in arguments.n
    ]

    def launch_of(case: Case) -> tuple[int, int, int]:
        return case.ranks, case.stages, case.n_future_tokens

    print("| ZeRO | ranks | stages | n | recomputation | predicted, MB | measured, MB | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for _, group in itertools.groupby(sorted(wanted, key=launch_of), key=launch_of):
        launched = list(group)
        for case, n_bytes in zip(launched, measured(launched), strict=True):
            expected = predicted(case)
            rows.append({**asdict(case), "predicted": expected, "measured": n_bytes})
            print(
                f"| {case.json} | {case.ranks} | {case.stages} | {case.n_future_tokens} | "
                f"{'yes' if case.activation_checkpointing else 'no'} | {expected / 1e6:.2f} | {n_bytes / 1e6:.2f} | "
                f"{expected / n_bytes - 1:+.1%} |",
                flush=True,
            )
    worst = max(abs(row["predicted"] / row["measured"] - 1) for row in rows)
    print(f"\n{len(rows)} cases, the worst {worst:.1%} off")
    if arguments.json is not None:
        write_json(arguments.json, rows)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.plan_memory")
