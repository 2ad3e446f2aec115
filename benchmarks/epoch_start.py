"""How long a run waits for its first batch, and for what memory, when an epoch has as many windows as 1T tokens have.

    python -m benchmarks.epoch_start [--windows 244140625] [--algos py1e py1br ...] [--block_sizes 262144]

mosaicml-streaming makes the order of a whole epoch before its first sample, on one process of each node. Here the index
names as many shards as are wanted, all of them one real file, and `TrainingData` reads the first batch
from it, in a process of its own for each setting: one rank, no loader workers.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.parts.harness import answer, on_ranks
from benchmarks.parts.outputs import check_json
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.schema import DataConfig, TrainConfig

SEQ_LEN, LOOKAHEAD = 4096, 8
WINDOWS_PER_SHARD = 8192  # 67 MB, as data_prep.write_shards has them
WINDOWS_OF_1T = 10**12 // SEQ_LEN
GIB = 2**30


def write_index(folder: Path, *, windows: int) -> None:
    """Write a split of `windows` windows in `folder`: one real shard, and an index that names it again and again."""
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


def first_batch(data: DataConfig) -> dict[str, float]:
    """Return the seconds until the first batch, and the most memory that this process had meanwhile."""
    from pipeline.data.batches import TrainingData
    from pipeline.runtime.world import world_from_environment

    world_from_environment()
    train = TrainConfig(total_tokens=10**12, batch_tokens=SEQ_LEN, micro_batch_size=1)
    start_s = time.perf_counter()
    reader = TrainingData(data, train=train, n_future_tokens=4)
    opened_s = time.perf_counter()
    next(reader)
    return {
        "open_s": opened_s - start_s,
        "order_s": time.perf_counter() - opened_s,
        "peak_GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure every setting, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    parser = command_parser("benchmarks.epoch_start", description=__doc__)
    usual = DataConfig()
    parser.add_argument("--windows", type=int, default=WINDOWS_OF_1T, help=f"default: {WINDOWS_OF_1T}, 1T tokens")
    parser.add_argument("--algos", nargs="+", default=[usual.shuffle_algo], help="shuffling algorithms")
    parser.add_argument("--block_sizes", type=int, nargs="+", default=[usual.shuffle_block_size])
    parser.add_argument("--canonical_nodes", type=int, nargs="+", default=[usual.num_canonical_nodes])
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--todo", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    settings = [
        {"shuffle_algo": algo, "shuffle_block_size": block, "num_canonical_nodes": nodes}
        for algo in arguments.algos
        for block in arguments.block_sizes
        for nodes in arguments.canonical_nodes
    ]
    if arguments.todo is not None:
        todo = json.loads(arguments.todo.read_text(encoding="utf-8"))
        answer(arguments.todo, first_batch(DataConfig(num_workers=0, **todo)))
        return
    check_json(arguments.json)
    rows = []
    print("| shuffle_algo | block size | canonical nodes | open, s | first batch after, s | peak, GiB |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "train").mkdir()
        write_index(Path(folder) / "train", windows=arguments.windows)
        for setting in tqdm(settings, leave=False):
            found = on_ranks("benchmarks.epoch_start", {"shards": folder, **setting}, ranks=1)
            rows.append({**setting, **found})
            print(
                f"| {setting['shuffle_algo']} | {setting['shuffle_block_size']} | {setting['num_canonical_nodes']} | "
                f"{found['open_s']:.1f} | {found['order_s']:.1f} | {found['peak_GiB']:.2f} |",
                flush=True,
            )
    if arguments.json is not None:
        write_json(arguments.json, {"windows": arguments.windows, "settings": rows})


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.epoch_start")
