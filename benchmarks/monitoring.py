"""What watching a run costs: the time of steps with everything on, over that of steps that are not watched.

Trains a random model under ZeRO-1, by the parts that a run has. In each round, in turn: a plain step, one whose
gradient norms are taken, a report, norms and histograms written, a preview. Each is measured by itself and counts as
often as its cadence says, so that other work on the machine, which slows whole minutes, does not decide:

    ratio = 1 + sum over what is watched of (median seconds / its cadence in steps) / median seconds of a plain step

One rank, or as many as the launcher starts (deepspeed --num_gpus 2 --module benchmarks.monitoring).
"""

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import torch
import torch.distributed as dist

from benchmarks.parts.outputs import check_json
from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json
from common.tokenizers import BYTES
from pipeline.config.deepspeed import fill_deepspeed_config, read_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, LogConfig, RunConfig, TrainConfig
from pipeline.data.batches import Batch
from pipeline.model.formulas import parameter_count
from pipeline.monitoring.monitor import Monitor
from pipeline.monitoring.previews import Previews
from pipeline.monitoring.sinks import sinks_for
from pipeline.monitoring.step_times import StepTimes
from pipeline.runtime.collectives import agree, mean_over_ranks
from pipeline.runtime.logs import configure_logging
from pipeline.runtime.world import world_from_environment
from pipeline.training.engine import build_engine
from pipeline.training.process_group import process_group

VOCAB_SIZE, HEADS = 258, 4  # previews are in bytes
CADENCES = {
    "report": 10,
    "gradient norms": 100,
    "preview": 100,
}  # steps: log.every_steps' default; docs/monitoring.md's


def config_in(directory: Path, arguments: argparse.Namespace, *, n_ranks: int) -> Config:
    """Return the run that is measured."""
    batch_tokens = arguments.seq_len * arguments.micro_batch_size * n_ranks
    return Config(
        run=RunConfig(dir=str(directory), name="watched"),
        model=ModelConfig(
            dim=arguments.dim, n_layers=arguments.n_layers, n_heads=arguments.dim // 64, vocab_size=VOCAB_SIZE,
            n_future_tokens=HEADS,
        ),
        data=DataConfig(seq_len=arguments.seq_len),
        train=TrainConfig(
            total_tokens=10**6 * batch_tokens, batch_tokens=batch_tokens, micro_batch_size=arguments.micro_batch_size
        ),
        log=LogConfig(previews_every_steps=1),
    )  # fmt: skip


def random_batches(config: Config) -> Iterator[Batch]:
    """Yield random micro batches without end."""
    seq_len = config.data.seq_len
    while True:
        tokens_BW = torch.randint(VOCAB_SIZE, (config.train.micro_batch_size, seq_len + HEADS))
        yield Batch(tokens_BW[:, :seq_len], tokens_BW[:, 1:].unfold(1, HEADS, 1)[:, :seq_len])


class Stopwatch:
    """Seconds of each part, by its name; ranks begin and end each together."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Measure what happens inside."""
        dist.barrier()
        start_s = time.perf_counter()
        yield
        dist.barrier()
        self.seconds[name].append(time.perf_counter() - start_s)


def measure(arguments: argparse.Namespace, scratch: Path) -> tuple[Config, dict[str, list[float]]]:
    """Return the run, and the seconds of each part in each round."""
    world, stopwatch = world_from_environment(), Stopwatch()
    configure_logging(world, handlers=[])
    with process_group(world) as device:
        config = config_in(scratch, arguments, n_ranks=world.world_size)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        values = read_deepspeed_config(Path("ds_configs/zero1_fp32.json"))
        deepspeed_config, _ = fill_deepspeed_config(values, config, data_ranks=world.world_size)
        engine, batches = build_engine(config, deepspeed_config, device=device), random_batches(config)
        previews = Previews(config.log, data=config.data, metadata={"tokenizer": {"kind": BYTES}})
        times = StepTimes(world=world, n_stages=1, num_workers=0)
        sinks = sinks_for(config, world=world, resumed_step=0)
        with Monitor(
            config.train, model=config.model, seq_len=config.data.seq_len, sinks=sinks, device=device, step=0
        ) as monitor:
            for step in range(1, arguments.rounds + 3):
                if step == 3:  # the first two warm up
                    stopwatch.seconds.clear()
                with stopwatch.part("plain step"), times.step():
                    losses_N = mean_over_ranks(engine.train_step(batches, learning_rate=1e-4))
                with stopwatch.part("step with norms"):
                    engine.train_step(batches, learning_rate=1e-4, takes_grad_norms=True)
                with stopwatch.part("report"):
                    own = times.own(wait_s=0.0, compute_s=engine.take_compute_s())
                    times.observe(agree(losses_N, *own)[1])
                    monitor.log_step(
                        step, losses_N=losses_N, learning_rate=1e-4, gradient_norm=engine.gradient_norm,
                        skipped_steps=0, skipped_windows=0, times=times.take_scalars(),
                    )  # fmt: skip
                with stopwatch.part("norms written"):
                    monitor.log_grad_norms(step, engine.grad_norms)
                with stopwatch.part("preview"):
                    previews.write(step, predict=engine.predict, monitor=monitor)
    return config, dict(stopwatch.seconds)


def costs_s(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds that each thing watched takes each time; the norms' computing is a difference."""
    norms = [a - b for a, b in zip(seconds["step with norms"], seconds["plain step"], strict=True)]
    return {
        "report": median(seconds["report"]),
        "gradient norms": max(0.0, median(norms)) + median(seconds["norms written"]),
        "preview": median(seconds["preview"]),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist, or the model is too small to have heads.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    if arguments.n_layers < HEADS or arguments.dim % 64:
        raise UserError(f"--n_layers must be at least {HEADS}, and --dim a multiple of 64")
    with tempfile.TemporaryDirectory() as scratch:
        config, seconds = measure(arguments, Path(scratch))
    if not world_from_environment().is_main:
        return
    print(table(config, seconds))
    if arguments.json is not None:
        write_json(arguments.json, seconds)


def table(config: Config, seconds: dict[str, list[float]]) -> str:
    """Return the costs as Markdown, and the ratio."""
    plain_s, costs = median(seconds["plain step"]), costs_s(seconds)
    shares = {name: cost_s / CADENCES[name] / plain_s for name, cost_s in costs.items()}
    steps_s = seconds["plain step"]
    lines = [
        f"{parameter_count(config.model) / 1e6:.1f}M parameters, {config.train.batch_tokens:,} tokens a step; medians"
        f" of {len(steps_s)} rounds; a plain step takes {plain_s:.3f} s ({min(steps_s):.3f} to {max(steps_s):.3f})\n",
        "| watched | every | seconds each time | of the time of all steps |",
        "|---|---|---|---|",
        *(f"| {name} | {CADENCES[name]} steps | {cost:.4f} | {shares[name]:.2%} |" for name, cost in costs.items()),
        f"\nwatched over not watched: {1 + sum(shares.values()):.4f}",
    ]
    return "\n".join(lines)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmarks.monitoring", description=__doc__)
    parser.add_argument("--dim", type=int, default=256, help="of the model, a multiple of 64 (default: %(default)s)")
    parser.add_argument("--n_layers", type=int, default=8, help="of the model, heads counted (default: %(default)s)")
    parser.add_argument("--seq_len", type=int, default=256, help="tokens of a sequence (default: %(default)s)")
    parser.add_argument("--micro_batch_size", type=int, default=4, help="sequences a rank (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="that are measured (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.monitoring")
