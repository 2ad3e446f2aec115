"""Whether reading ever keeps a GPU waiting: what the loader gives a model that costs nothing, and one at full speed.

    python -m benchmarks.loader_rate [--workers 0 1 2 4] [--json FILE]

A null model takes micro batches from `TrainingData` as fast as they come: windows of random tokens, read
from real shards whose hashes are checked, shuffled, collated in uint16 (pinned where there is a GPU), moved to the
device, widened to int64 there, and cut into targets. Each number of workers has a process of its own.

What a model asks for is a matter of arithmetic: the device's peak, times the utilisation that a run may hope for, over
the model's FLOPs per sequence. A paced model takes its micro batches at that rate, by sleeping; of its time, the share
that it waits for data is what `data/wait_s` of a run would show.
"""

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import answer, markdown, on_ranks, spread
from benchmarks.parts.outputs import check_json
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.config.schema import DataConfig, TrainConfig
from pipeline.model.formulas import training_flops_per_token
from pipeline.runtime.devices import peak_flops

SEQ_LEN, LOOKAHEAD, HEADS, MICRO_BATCH = 4096, 8, 4, 8
WINDOWS = 8192  # 67 MB, a shard as data_prep.write_shards has them
DEVICE = "NVIDIA H100 80GB HBM3"


def samples_per_s(size: str, *, mfu: float) -> float:
    """Return the sequences a second that one `DEVICE` trains on in bf16 at this share of its peak FLOPs."""
    model = resolve_model(ModelConfig(size=size, n_future_tokens=HEADS))
    peak = peak_flops(DEVICE, precision="bf16")
    assert peak is not None
    return mfu * peak / training_flops_per_token(model, seq_len=SEQ_LEN) / SEQ_LEN


def write_shards(folder: Path, *, windows: int) -> None:
    """Write a split of random windows, in shards that have hashes."""
    import numpy as np

    from common.mds import streaming

    tokens = np.random.default_rng(1).integers(32_000, size=(windows, SEQ_LEN + LOOKAHEAD), dtype=np.uint16)
    columns = {"tokens": f"ndarray:uint16:{SEQ_LEN + LOOKAHEAD}"}
    with streaming.MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"], size_limit=2**26) as writer:
        for window in tokens:
            writer.write({"tokens": window})


def read_here(todo: dict[str, Any]) -> dict[str, Any]:
    """Take batches as fast as they come, and then at the paced model's rate."""
    import torch

    from pipeline.data.batches import TrainingData

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = TrainingData(
        DataConfig(shards=todo["shards"], seq_len=SEQ_LEN, num_workers=todo["workers"]),
        train=TrainConfig(batch_tokens=MICRO_BATCH * SEQ_LEN, micro_batch_size=MICRO_BATCH),
        n_future_tokens=HEADS,
        device=device,
    )
    next(data)  # makes the epoch's order, and starts the workers
    rates = []
    for _ in range(todo["warm_up"] + todo["repeats"]):
        start_s = time.perf_counter()
        for batch in itertools.islice(data, todo["batches"]):
            batch.targets_BTN.sum()  # it is there
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rates.append(todo["batches"] * MICRO_BATCH / (time.perf_counter() - start_s))
    waits = []
    for _ in range(todo["repeats"]):
        before_s, start_s = data.wait_s, time.perf_counter()
        for _batch in itertools.islice(data, todo["batches"] // 4):
            time.sleep(MICRO_BATCH / todo["wanted"])
        waits.append((data.wait_s - before_s) / (time.perf_counter() - start_s))
    return {"samples_per_s": rates[todo["warm_up"] :], "wait_share": waits, "device": device.type}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each number of workers, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    parser = command_parser("benchmarks.loader_rate", description=__doc__)
    default = "default: %(default)s"
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help=f"data.num_workers ({default})")
    parser.add_argument("--size", choices=MODEL_SIZES, default="0.3B", help=f"what the paced model is ({default})")
    parser.add_argument("--mfu", type=float, default=0.55, help=f"its share of the {DEVICE}'s peak FLOPs ({default})")
    parser.add_argument(
        "--batches", type=int, default=64, help=f"of {MICRO_BATCH} windows, in a repetition ({default})"
    )
    parser.add_argument("--warm_up", type=int, default=2, help=f"repetitions that do not count ({default})")
    parser.add_argument("--repeats", type=int, default=5, help=f"repetitions that do ({default})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    parser.add_argument("--todo", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.todo is not None:
        answer(arguments.todo, read_here(json.loads(arguments.todo.read_text(encoding="utf-8"))))
        return
    check_json(arguments.json)
    wanted = samples_per_s(arguments.size, mfu=arguments.mfu)
    todo = {"batches": arguments.batches, "warm_up": arguments.warm_up, "repeats": arguments.repeats, "wanted": wanted}
    table, found = [["workers", "samples/s", "tokens/s", "of what is wanted", "share of waiting, paced"]], []
    with tempfile.TemporaryDirectory() as folder:
        write_shards(Path(folder) / "train", windows=WINDOWS)
        for workers in arguments.workers:
            one = on_ranks("benchmarks.loader_rate", {**todo, "shards": folder, "workers": workers}, ranks=1)
            found.append({"workers": workers, **one})
            rate, wait = spread(one["samples_per_s"]), spread([100 * share for share in one["wait_share"]])
            tokens = f"{rate.median * SEQ_LEN:,.0f}"
            table.append([str(workers), str(rate), tokens, f"{rate.median / wanted:.1f}", f"{wait} %"])
    print(
        f"Windows of {SEQ_LEN:,} tokens to {found[0]['device']}. A {arguments.size} model with {HEADS} heads on one"
        f" {DEVICE} at an MFU of {arguments.mfu:.0%} wants {wanted:.1f} a second.\n\n{markdown(table)}"
    )
    if arguments.json is not None:
        write_json(arguments.json, {"wanted_samples_per_s": wanted, "workers": found})


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.loader_rate")
