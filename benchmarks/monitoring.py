"""The cost of watching a run: the time of all steps with everything watched, over their time with nothing watched.

    python -m benchmarks.monitoring [--ranks 1] [--json FILE]

Trains a random model under ZeRO-1 with the parts of a real run. Each round takes, in turn, a plain step, a step that
also computes gradient norms, a report, the writing of norms and histograms, and a preview. Each part is timed by itself
and weighted by its cadence, so that other work on the machine, which slows whole minutes, does not decide:

    ratio = 1 + sum over the parts watched of (median seconds / cadence in steps) / median seconds of a plain step
"""

from common.endings import exit_on_user_error

import argparse
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.parts.harness import COUNT, DEFAULT, REPOSITORY, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.ranks import on_ranks
from common.tokenizers import BYTES
from pipeline.config.deepspeed import fill_deepspeed_config, load_deepspeed_config
from pipeline.config.model import ModelConfig
from pipeline.config.schema import Config, DataConfig, LogConfig, RunConfig, TrainConfig
from pipeline.model.formulas import parameter_count

VOCAB_SIZE, HEADS = 258, 4  # previews are in bytes
# In steps: the default of log.every_steps, and the cadences that docs/monitoring.md recommends.
CADENCES = {"report": 10, "gradient norms": 100, "preview": 100}
SHAPE = ("dim", "n_layers", "seq_len", "micro_batch_size")  # the options that describe the model and its batch


def config_in(directory: Path, *, dim: int, n_layers: int, seq_len: int, micro_batch_size: int, n_ranks: int) -> Config:
    """Return the config of the run that is measured."""
    batch_tokens = seq_len * micro_batch_size * n_ranks
    return Config(
        run=RunConfig(dir=str(directory), name="watched"),
        model=ModelConfig(
            dim=dim, n_layers=n_layers, n_heads=dim // 64, vocab_size=VOCAB_SIZE, n_future_tokens=HEADS
        ),
        data=DataConfig(seq_len=seq_len),
        train=TrainConfig(
            total_tokens=10**6 * batch_tokens, batch_tokens=batch_tokens, micro_batch_size=micro_batch_size
        ),
        log=LogConfig(previews_every_steps=1),
    )  # fmt: skip


class Stopwatch:
    """Records the seconds of each part by name; all ranks begin and end a part together."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time the body of the `with` statement."""
        from torch import distributed as dist

        dist.barrier()
        start_s = time.perf_counter()
        yield
        dist.barrier()
        self.seconds[name].append(time.perf_counter() - start_s)


def watch_on_rank(task: dict[str, Any]) -> dict[str, list[float]]:
    """Train and watch as one of the ranks; return the seconds of each part in each round."""
    from benchmarks.parts.batches import random_batches
    from pipeline.monitoring.monitor import Monitor
    from pipeline.monitoring.previews import Previews
    from pipeline.monitoring.sinks.selection import sinks_for
    from pipeline.monitoring.step_times import StepTimes
    from pipeline.runtime.collectives import mean_over_ranks
    from pipeline.runtime.logs import configure_logging
    from pipeline.runtime.world import world_from_environment
    from pipeline.training.agreement import StepCounts, agree
    from pipeline.training.build import build_engine
    from pipeline.training.process_group import process_group

    world, stopwatch = world_from_environment(), Stopwatch()
    configure_logging(world, handlers=[])
    with process_group(world) as device:
        config = config_in(Path(task["scratch"]), **task["shape"], n_ranks=world.world_size)
        config.run_dir.mkdir(parents=True, exist_ok=True)
        values = load_deepspeed_config(REPOSITORY / "ds_configs" / "zero1_fp32.json")
        deepspeed_config, _ = fill_deepspeed_config(values, config, data_ranks=world.world_size)
        engine = build_engine(config, deepspeed_config, device=device)
        batches = random_batches(
            micro_batch_size=config.train.micro_batch_size, seq_len=config.data.seq_len, vocab_size=VOCAB_SIZE,
            n_future_tokens=HEADS,
        )  # fmt: skip
        previews = Previews(config.log, data=config.data, metadata={"tokenizer": {"kind": BYTES}})
        times = StepTimes(world=world, n_stages=1, num_workers=0)
        sinks = sinks_for(config, world=world, resumed_step=0)
        with Monitor(
            config.train, model=config.model, seq_len=config.data.seq_len, sinks=sinks, device=device, step=0
        ) as monitor:
            for step in range(1, task["rounds"] + 3):
                if step == 3:  # the first two warm up
                    stopwatch.seconds.clear()
                with stopwatch.part("plain step"), times.step():
                    losses_N = mean_over_ranks(engine.train_step(batches, learning_rate=1e-4).losses_N)
                with stopwatch.part("step with norms"):
                    result = engine.train_step(batches, learning_rate=1e-4, takes_grad_norms=True)
                with stopwatch.part("report"):
                    own_s = times.contribution(wait_s=0.0, compute_s=result.compute_s)
                    times.observe(agree(losses_N, StepCounts(times_s=own_s))[1].times_s)
                    monitor.log_step(
                        step, losses_N=losses_N, learning_rate=1e-4, gradient_norm=result.gradient_norm,
                        skipped_steps=0, skipped_windows=0, times=times.take_scalars(),
                    )  # fmt: skip
                with stopwatch.part("norms written"):
                    monitor.log_grad_norms(step, result.grad_norms)
                with stopwatch.part("preview"):
                    previews.write(step, predict=engine.predict, monitor=monitor)
    return dict(stopwatch.seconds)


def costs_s(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Return the median seconds that each watched part takes each time.

    The time to compute gradient norms is the difference between a step with norms and a plain step.
    """
    norms = [a - b for a, b in zip(seconds["step with norms"], seconds["plain step"], strict=True)]
    return {
        "report": median(seconds["report"]),
        "gradient norms": max(0.0, median(norms)) + median(seconds["norms written"]),
        "preview": median(seconds["preview"]),
    }


def table(config: Config, seconds: dict[str, list[float]]) -> str:
    """Return the costs as a Markdown table, and the ratio."""
    plain_s, costs = median(seconds["plain step"]), costs_s(seconds)
    shares = {name: cost_s / CADENCES[name] / plain_s for name, cost_s in costs.items()}
    steps_s = seconds["plain step"]
    rows = [["watched", "every", "seconds each time", "of the time of all steps"]]
    rows += [[name, f"{CADENCES[name]} steps", f"{cost:.4f}", f"{shares[name]:.2%}"] for name, cost in costs.items()]
    return (
        f"{parameter_count(config.model) / 1e6:.1f}M parameters, {config.train.batch_tokens:,} tokens per step; medians"
        f" of {len(steps_s)} rounds; a plain step takes {plain_s:.3f} s ({min(steps_s):.3f} to {max(steps_s):.3f})\n\n"
        f"{markdown(rows)}\n\nwatched over not watched: {1 + sum(shares.values()):.4f}"
    )


def measure(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Measure every part, print the table, and return the seconds of each part in each round."""
    shape = {name: getattr(arguments, name) for name in SHAPE}
    with tempfile.TemporaryDirectory() as scratch:
        task = {"scratch": scratch, "shape": shape, "rounds": arguments.repeats}
        seconds = on_ranks(watch_on_rank, task, ranks=arguments.ranks)
        print(table(config_in(Path(scratch), **shape, n_ranks=arguments.ranks), seconds))
    return seconds


def _problems(arguments: argparse.Namespace) -> list[str]:
    if arguments.n_layers < HEADS or arguments.dim % 64 or arguments.dim < 64:
        return [f"--n_layers must be at least {HEADS}, and --dim a multiple of 64"]
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.monitoring", description=__doc__, ranks=1, repeats=30)
    add = parser.add_argument
    add("--dim", type=COUNT, default=256, metavar="N", help=f"width of the model, a multiple of 64 {DEFAULT}")
    add("--n_layers", type=COUNT, default=8, metavar="N", help=f"layers of the model, heads included {DEFAULT}")
    add("--seq_len", type=COUNT, default=256, metavar="N", help=f"tokens per sequence {DEFAULT}")
    add("--micro_batch_size", type=COUNT, default=4, metavar="N", help=f"sequences per rank {DEFAULT}")
    run_benchmark(parser, measure, argv, check=_problems)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.monitoring")
