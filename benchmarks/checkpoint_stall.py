"""Measures the time that training stalls for a checkpoint, synchronous or asynchronous.

    python -m benchmarks.checkpoint_stall [--dim 768] [--n_layers 12] [--json FILE]

One rank trains a random model under ZeRO-1, and saves it in both ways in turn, as a run does. The stall is the time
that the training loop waits for the save. An asynchronous save continues in the background and may slow the steps, so
steps are timed with and without a save in progress.
"""

from common.endings import exit_on_user_error

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.parts.batches import random_batches
from benchmarks.parts.harness import COUNT, DEFAULT, REPOSITORY, benchmark_parser, markdown, run_benchmark
from common.command_line import UserError
from pipeline.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import CheckpointConfig, Config, DataConfig, RunConfig, TrainConfig
from pipeline.data.batches import Batch
from pipeline.model.formulas import parameter_count
from pipeline.runtime.lease import Lease
from pipeline.runtime.world import World, world_from_environment
from pipeline.training.build import build_engine
from pipeline.training.engine import Engine
from pipeline.training.process_group import process_group
from pipeline.weights.checkpoint.folder import CheckpointFolder

SEQ_LEN, VOCAB_SIZE, HEADS = 128, 8192, 4
NAMES = {False: "synchronous", True: "asynchronous"}
STATE_BYTES = 12  # of a parameter: its fp32 value, and Adam's two moments


@dataclass(frozen=True, kw_only=True)
class Save:
    """The times of one checkpoint."""

    stall_s: float
    """How long training waited for it."""
    whole_s: float
    """How long it took until the checkpoint was complete."""
    steps_s: list[float]
    """The time of each step taken in the meantime."""


def config_in(directory: Path, *, dim: int, n_layers: int, asynchronous: bool) -> Config:
    """Return the config of a run with one sequence per step."""
    return Config(
        run=RunConfig(dir=str(directory), name=NAMES[asynchronous]),
        model=ModelConfig(
            dim=dim, n_layers=n_layers, n_heads=dim // 64, vocab_size=VOCAB_SIZE, n_future_tokens=HEADS
        ),
        data=DataConfig(seq_len=SEQ_LEN),
        train=TrainConfig(total_tokens=SEQ_LEN, batch_tokens=SEQ_LEN),
        checkpoint=CheckpointConfig(keep=1, asynchronous=asynchronous),
    )  # fmt: skip


def step_s(engine: Engine, batches: Iterator[Batch]) -> float:
    """Take one training step; return the seconds it took."""
    start_s = time.perf_counter()
    engine.train_step(batches, learning_rate=1e-4)
    return time.perf_counter() - start_s


def save(folder: CheckpointFolder, step: int, engine: Engine, batches: Iterator[Batch], *, asynchronous: bool) -> Save:
    """Save once; if the save is asynchronous, train on until it is complete.

    Raises:
        UserError: the save failed, for instance because the disk is full.
    """
    start_s, steps_s = time.perf_counter(), []
    folder.begin(step, engine=engine, state={})
    stall_s = time.perf_counter() - start_s
    while asynchronous and not folder.is_written:
        steps_s.append(step_s(engine, batches))
    failure = folder.finish()
    if failure is not None:
        raise UserError(f"a checkpoint could not be written: {failure}")
    whole_s = time.perf_counter() - start_s
    return Save(stall_s=stall_s if asynchronous else whole_s, whole_s=whole_s, steps_s=steps_s)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure saves of both kinds, print the table, and return the figures."""
    world = world_from_environment()
    with process_group(world) as device, tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        configs = {
            asynchronous: config_in(
                Path(scratch), dim=arguments.dim, n_layers=arguments.n_layers, asynchronous=asynchronous
            )
            for asynchronous in (False, True)
        }
        folders = {asynchronous: _folder_of(config, world=world) for asynchronous, config in configs.items()}
        values = load_deepspeed_config(REPOSITORY / "ds_configs" / "zero1_fp32.json")
        deepspeed_config, _ = fill_deepspeed_config(values, configs[True], data_ranks=1)
        engine = build_engine(configs[True], deepspeed_config, device=device)
        batches = random_batches(micro_batch_size=1, seq_len=SEQ_LEN, vocab_size=VOCAB_SIZE, n_future_tokens=HEADS)
        for asynchronous, folder in folders.items():  # the first saves allocate buffers, and do not count
            save(folder, 1, engine, batches, asynchronous=asynchronous)
        quiet_s: list[float] = []
        saves: dict[bool, list[Save]] = {False: [], True: []}
        for step in range(2, arguments.repeats + 2):
            quiet_s += [step_s(engine, batches) for _ in range(5)]
            for asynchronous, folder in folders.items():
                saves[asynchronous].append(save(folder, step, engine, batches, asynchronous=asynchronous))
    parameters = parameter_count(configs[True].model)
    print(table(saves, quiet_s, parameters=parameters))
    rows = {NAMES[asynchronous]: [asdict(one) for one in of] for asynchronous, of in saves.items()}
    return {"parameters": parameters, "quiet_step_s": quiet_s, **rows}


def _folder_of(config: Config, *, world: World) -> CheckpointFolder:
    """Return the checkpoint folder of a new run."""
    (config.run_dir / "checkpoints").mkdir(parents=True)
    lease = Lease(config.run_dir, launch=world.launch)
    lease.take()
    return CheckpointFolder(
        config.run_dir / "checkpoints", policy=config.checkpoint, run_config=config.as_dict(), world=world, lease=lease
    )


def table(saves: dict[bool, list[Save]], quiet_s: list[float], *, parameters: int) -> str:
    """Return the saves of both kinds as a Markdown table of medians."""
    rows = [
        [
            "checkpoint",
            "stall, s",
            "over the synchronous stall",
            "complete after, s",
            "step time meanwhile / without a save",
        ]
    ]
    reference_s = median(one.stall_s for one in saves[False])
    for asynchronous, of in saves.items():
        stalls, whole_s = [one.stall_s for one in of], median(one.whole_s for one in of)
        steps = [step for one in of for step in one.steps_s]
        slowed = f"{median(steps) / median(quiet_s):.2f}" if steps else ""
        stall = f"{median(stalls):.3f} ({min(stalls):.3f} to {max(stalls):.3f})"
        rows.append([NAMES[asynchronous], stall, f"{median(stalls) / reference_s:.3f}", f"{whole_s:.2f}", slowed])
    return (
        f"{parameters / 1e6:.0f}M parameters, {STATE_BYTES * parameters / 1e9:.2f} GB of state; medians of"
        f" {len(saves[True])}, in brackets smallest and largest\n\n{markdown(rows)}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser(
        "benchmarks.checkpoint_stall", description=__doc__, repeats=7, rounds="saves of each kind"
    )
    add = parser.add_argument
    add("--dim", type=COUNT, default=768, metavar="N", help=f"width of the model, a multiple of 64 {DEFAULT}")
    add("--n_layers", type=COUNT, default=12, metavar="N", help=f"layers of the model, heads included {DEFAULT}")
    scratch_help = "folder on the disk to measure; takes about 48 bytes per parameter (default: the system's)"
    add("--scratch", type=Path, metavar="DIR", help=scratch_help)
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.checkpoint_stall")
