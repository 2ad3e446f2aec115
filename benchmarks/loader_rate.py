"""Measures whether data loading keeps a GPU waiting: the loader's rate, and the wait of a model at full speed.

    python -m benchmarks.loader_rate [--workers 0 1 2 4] [--json FILE]

A null model takes micro batches from `TrainingData` as fast as they come. Windows of random tokens are read from real
shards with checked hashes, shuffled, collated in uint16 (pinned if there is a GPU), moved to the device, widened to
int64 there, and cut into targets. Each number of workers has a process of its own.

The rate that a real model needs is computed: the device's peak FLOPs, times the expected utilisation, divided by the
model's FLOPs per sequence. A paced model sleeps so that it takes micro batches at that rate. The fraction of time that
it waits for data is the fraction that `data/wait_s` of a run would show.
"""

from common.endings import exit_on_user_error

import argparse
import itertools
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import DEFAULT, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.ranks import on_ranks
from benchmarks.parts.rounds import spread
from common.command_line import real_number, whole_number
from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.model.formulas import training_flops_per_token
from pipeline.runtime.devices import peak_flops

SEQ_LEN, LOOKAHEAD, HEADS, MICRO_BATCH = 4096, 8, 4, 8
WINDOWS = 8192  # 67 MB, the size of a shard of data_prep.write_shards
DEVICE = "NVIDIA H100 80GB HBM3"


def samples_per_s(size: str, *, mfu: float) -> float:
    """Return the sequences per second that one `DEVICE` trains on in bf16 at this fraction of its peak FLOPs."""
    model = resolve_model(ModelConfig(size=size, n_future_tokens=HEADS))
    peak = peak_flops(DEVICE, precision="bf16")
    assert peak is not None
    return mfu * peak / training_flops_per_token(model, seq_len=SEQ_LEN) / SEQ_LEN


def write_shards(folder: Path, *, windows: int) -> None:
    """Write a split of random windows, in shards with hashes."""
    import numpy as np

    from common.mds import streaming

    tokens = np.random.default_rng(1).integers(32_000, size=(windows, SEQ_LEN + LOOKAHEAD), dtype=np.uint16)
    columns = {"tokens": f"ndarray:uint16:{SEQ_LEN + LOOKAHEAD}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"], size_limit=2**26) as writer:
        for window in tokens:
            writer.write({"tokens": window})


def read_on_rank(task: dict[str, Any]) -> dict[str, Any]:
    """Take batches as fast as they come, and then at the paced model's rate; return both models' figures."""
    import torch

    from pipeline.data.batches import TrainingData

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TrainingData(
        DataConfig(shards=task["shards"], seq_len=SEQ_LEN, num_workers=task["workers"]),
        train=TrainConfig(batch_tokens=MICRO_BATCH * SEQ_LEN, micro_batch_size=MICRO_BATCH),
        n_future_tokens=HEADS,
        vocab_size=32_000,
        device=device,
    )
    next(data)  # computes the epoch's order, and starts the workers
    rates = []
    for _ in range(task["warm_up"] + task["repeats"]):
        start_s = time.perf_counter()
        for batch in itertools.islice(data, task["batches"]):
            batch.targets_BTN.sum()  # needs the batch on the device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(task["batches"] * MICRO_BATCH / (time.perf_counter() - start_s))
    waits = []
    for _ in range(task["repeats"]):
        before_s, start_s = data.wait_s, time.perf_counter()
        for _batch in itertools.islice(data, task["batches"] // 4):
            time.sleep(MICRO_BATCH / task["wanted"])
        waits.append((data.wait_s - before_s) / (time.perf_counter() - start_s))
    return {"samples_per_s": rates[task["warm_up"] :], "wait_share": waits, "device": device.type}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each number of workers, print the table, and return the figures."""
    wanted = samples_per_s(arguments.size, mfu=arguments.mfu)
    task = {"batches": arguments.batches, "warm_up": arguments.warm_up, "repeats": arguments.repeats, "wanted": wanted}
    table, found = [["workers", "samples/s", "tokens/s", "of the rate needed", "time waiting, paced"]], []
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "train", windows=WINDOWS)
        for workers in arguments.workers:
            one = on_ranks(read_on_rank, {**task, "shards": folder, "workers": workers}, ranks=1)
            found.append({"workers": workers, **one})
            rate, wait = spread(one["samples_per_s"]), spread([100 * share for share in one["wait_share"]])
            tokens = f"{rate.median * SEQ_LEN:,.0f}"
            table.append([str(workers), str(rate), tokens, f"{rate.median / wanted:.1f}", f"{wait} %"])
    print(
        f"Windows of {SEQ_LEN:,} tokens to {found[0]['device']}. A {arguments.size} model with {HEADS} heads on one"
        f" {DEVICE} at an MFU of {arguments.mfu:.0%} needs {wanted:.1f} windows per second.\n\n{markdown(table)}"
    )
    return {"wanted_samples_per_s": wanted, "workers": found}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser(
        "benchmarks.loader_rate", description=__doc__, warm_up=2, repeats=5, rounds="repetitions"
    )  # fmt: skip
    add = parser.add_argument
    workers = whole_number(at_least=0, at_most=1024)
    add("--workers", type=workers, nargs="+", default=[0, 1, 2], metavar="N", help=f"data.num_workers {DEFAULT}")
    add("--size", choices=MODEL_SIZES, default="0.3B", help=f"size of the paced model {DEFAULT}")
    mfu_help = f"fraction of the {DEVICE}'s peak FLOPs that the paced model reaches {DEFAULT}"
    add("--mfu", type=real_number(above=0, at_most=1), default=0.55, metavar="F", help=mfu_help)
    batches_help = f"micro batches of {MICRO_BATCH} windows in a repetition {DEFAULT}"
    add("--batches", type=whole_number(at_least=1, at_most=1_000_000), default=64, metavar="N", help=batches_help)
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.loader_rate")
