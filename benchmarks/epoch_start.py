"""Measures the wait for a run's first batch, and its memory, for an epoch of 1T tokens.

    python -m benchmarks.epoch_start [--windows 244140625] [--algos py1e py1br ...] [--block_sizes 262144]

mosaicml-streaming computes the order of a whole epoch before its first sample, in one process of each node. Here an
index lists as many shards as the epoch needs, all of them the same real file, and `TrainingData` reads the first batch.
Each setting has a process of its own: one rank, no loader workers.
"""

from common.endings import exit_on_user_error

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.parts.harness import COUNT, DEFAULT, LiveTable, benchmark_parser, run_benchmark
from benchmarks.parts.ranks import on_ranks
from common.command_line import whole_number
from pipeline.config.schema import DataConfig, TrainConfig

SEQ_LEN, LOOKAHEAD = 4096, 8
WINDOWS_PER_SHARD = 8192  # 67 MB, the size of a shard of data_prep.write_shards
WINDOWS_OF_1T = 10**12 // SEQ_LEN
GIB = 2**30


def write_index(folder: Path, *, windows: int) -> None:
    """Write a split of `windows` windows in `folder`: one real shard, and an index that lists it many times."""
    import numpy as np

    from common.mds import streaming

    columns = {"tokens": f"ndarray:uint16:{SEQ_LEN + LOOKAHEAD}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"], size_limit=2**30) as writer:
        window = np.zeros(SEQ_LEN + LOOKAHEAD, np.uint16)
        for _ in range(min(windows, WINDOWS_PER_SHARD)):
            writer.write({"tokens": window})
    path = folder / "index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    index["shards"] *= max(1, windows // WINDOWS_PER_SHARD)
    path.write_text(json.dumps(index), encoding="utf-8")


def first_batch(data: dict[str, Any]) -> dict[str, float]:
    """Return the seconds to open the data and to read the first batch, and the peak memory of this process.

    Args:
        data: fields of `DataConfig`.
    """
    from pipeline.data.batches import TrainingData
    from pipeline.runtime.world import world_from_environment

    world_from_environment()
    train = TrainConfig(total_tokens=10**12, batch_tokens=SEQ_LEN, micro_batch_size=1)
    start_s = time.perf_counter()
    reader = TrainingData(DataConfig(num_workers=0, **data), train=train, n_future_tokens=4, vocab_size=1)
    opened_s = time.perf_counter()
    next(reader)
    return {
        "open_s": opened_s - start_s,
        "order_s": time.perf_counter() - opened_s,
        "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every setting, print the table as it grows, and return the figures."""
    settings = [
        {"shuffle_algo": algo, "shuffle_block_size": block, "num_canonical_nodes": nodes}
        for algo in arguments.algos
        for block in arguments.block_sizes
        for nodes in arguments.canonical_nodes
    ]
    rows = []
    table = LiveTable("shuffle_algo", "block size", "canonical nodes", "open, s", "first batch, s", "peak, GiB")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        write_index(Path(folder) / "train", windows=arguments.windows)
        for setting in tqdm(settings, leave=False):
            found = on_ranks(first_batch, {"shards": folder, **setting}, ranks=1)
            rows.append({**setting, **found})
            figures = (f"{found['open_s']:.1f}", f"{found['order_s']:.1f}", f"{found['peak_GiB']:.2f}")
            table.add(*map(str, setting.values()), *figures)
    return {"windows": arguments.windows, "settings": rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.epoch_start", description=__doc__)
    add, usual = parser.add_argument, DataConfig()
    windows_help = f"windows of an epoch (default: {WINDOWS_OF_1T}, 1T tokens)"
    windows = whole_number(at_least=1, at_most=10**12)
    add("--windows", type=windows, default=WINDOWS_OF_1T, metavar="N", help=windows_help)
    algos_help = f"streaming's shuffling algorithms {DEFAULT}"
    add("--algos", nargs="+", default=[usual.shuffle_algo], metavar="NAME", help=algos_help)
    blocks_help = f"windows of a shuffling block {DEFAULT}"
    add("--block_sizes", type=COUNT, nargs="+", default=[usual.shuffle_block_size], metavar="N", help=blocks_help)
    nodes_help = f"canonical nodes {DEFAULT}"
    add("--canonical_nodes", type=COUNT, nargs="+", default=[usual.num_canonical_nodes], metavar="N", help=nodes_help)
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.epoch_start")
