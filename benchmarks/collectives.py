"""Counts how often a training step sends each parameter over the network, for several numbers of heads.

    python -m benchmarks.collectives [--jsons zero3_fp32 zero2_fp32 zero1_fp32] [--n 1 4] [--json FILE]

An ordinary implementation of the paper's Figure 2 calls backward once per head, and each call runs the hooks that
gather and reduce. Here the engine sees one forward and one backward, so n = 4 should send no more than n = 1.

The third step is run on real CPU ranks. Every collective is counted when torch dispatches it: the elements that ranks
gather (parameters) and the elements that they reduce (gradients), divided by the number of the model's parameters.
ZeRO-3 is measured twice: with room to keep gathered parameters from forward to backward, and without (`tight`).
"""

from common.endings import exit_on_user_error

import argparse
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.parts.harness import COUNT, DEFAULT, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.ranks import on_ranks
from benchmarks.parts.steps import Case
from pipeline.model.formulas import parameter_count

SHAPE = Case(dim=128, n_layers=8, n_heads=4, vocab_size=2048, seq_len=64, micro_batch_size=2)
# No parameter is kept whole on every rank, and in the tight case none stays gathered for later.
ALL_PARTITIONED = {"stage3_param_persistence_threshold": 0}
TIGHT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
GATHERS = {"allgather_", "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_"}
REDUCES = {"allreduce_", "reduce_scatter_", "_reduce_scatter_base_", "reduce_"}
SMALL = 64  # elements; smaller collectives carry norms, flags and losses, and are not counted


@dataclass(frozen=True, kw_only=True)
class Counted:
    """The collectives of one step on one rank."""

    json: str
    """Name of a file of ds_configs/."""
    tight: bool
    """Whether ZeRO-3 had no room to keep gathered parameters."""
    n_future_tokens: int
    gathers: int
    """Calls that gather parameters."""
    gathered: float
    """Elements gathered, divided by the number of the model's parameters."""
    reduces: int
    """Calls that reduce gradients."""
    reduced: float
    """Elements reduced, divided by the number of the model's parameters."""


def counted(ways: Sequence[tuple[str, bool]], *, heads: Sequence[int], ranks: int = 2) -> list[Counted]:
    """Return the counts of each way, which is a DeepSpeed JSON and whether it is tight, for each number of heads."""
    task = [[name, tight, n] for (name, tight), n in itertools.product(ways, heads)]
    return [Counted(**row) for row in on_ranks(count_on_rank, task, ranks=ranks, DS_ACCELERATOR="cpu")]


def count_on_rank(task: list[tuple[str, bool, int]]) -> list[dict[str, Any]]:
    """Return this rank's counts of each way and number of heads."""
    import torch

    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    world, found = world_from_environment(), []
    with process_group(world):
        for name, tight, n in task:
            found.append(_third_step(name, tight=tight, n_future_tokens=n, ranks=world.world_size))
            torch.distributed.barrier()
    return [asdict(one) for one in found]


def _third_step(name: str, *, tight: bool, n_future_tokens: int, ranks: int) -> Counted:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from benchmarks.parts.batches import zero_batches
    from pipeline.training.build import build_engine

    class Log(TorchDispatchMode):
        """Counts the collectives of parameters and gradients, and their elements."""

        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()
            self.elements: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            namespace, _, name = func.name().partition("::")
            if namespace == "c10d":
                name = name.partition(".")[0]
                kind = "gather" if name in GATHERS else "reduce" if name in REDUCES else name
                # a gather is counted by its outputs and a reduction by its inputs; both are arguments of the call
                tensors = [x for x in tree_leaves(args[1] if "scatter" in name else args[0]) if torch.is_tensor(x)]
                n_elements = sum(x.numel() for x in tensors)
                if n_elements > SMALL:
                    self.calls[kind] += 1
                    self.elements[kind] += n_elements
            return func(*args, **(kwargs or {}))

    case = Case(**{**asdict(SHAPE), "json": name, "n_future_tokens": n_future_tokens})
    deepspeed_config = case.deepspeed_config(ranks=ranks)
    if "zero3" in name:
        deepspeed_config["zero_optimization"].update(ALL_PARTITIONED | (TIGHT if tight else {}))
    engine = build_engine(case.config(ranks=ranks), deepspeed_config, device=torch.device("cpu"))
    batches = zero_batches(
        micro_batch_size=case.micro_batch_size, seq_len=case.seq_len, n_future_tokens=n_future_tokens
    )
    for _ in range(2):  # in the first step ZeRO-3 records the order in which it has to gather
        engine.train_step(batches, learning_rate=1e-4)
    log = Log()
    with log:
        engine.train_step(batches, learning_rate=1e-4)
    known = parameter_count(case.model)
    assert set(log.calls) <= {"gather", "reduce"}, log.calls
    return Counted(
        json=name,
        tight=tight,
        n_future_tokens=n_future_tokens,
        gathers=log.calls["gather"],
        gathered=log.elements["gather"] / known,
        reduces=log.calls["reduce"],
        reduced=log.elements["reduce"] / known,
    )


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Count the collectives, print the table, and return the counts."""
    ways = [(name, tight) for name in arguments.jsons for tight in ((False, True) if "zero3" in name else (False,))]
    found = counted(ways, heads=arguments.n, ranks=arguments.ranks)
    rows = [["ZeRO", "n", "gathers", "parameters gathered / model", "reductions", "gradients reduced / model"]]
    for one in found:
        name = f"{one.json}, tight" if one.tight else one.json
        figures = [str(one.gathers), f"{one.gathered:.3f}", str(one.reduces), f"{one.reduced:.3f}"]
        rows.append([name, str(one.n_future_tokens), *figures])
    print(markdown(rows))
    return [asdict(one) for one in found]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.collectives", description=__doc__, ranks=2)
    usual = ["zero1_fp32", "zero2_fp32", "zero3_fp32"]
    parser.add_argument("--jsons", nargs="+", default=usual, metavar="NAME", help=f"files of ds_configs/ {DEFAULT}")
    parser.add_argument("--n", type=COUNT, nargs="+", default=[1, 4], metavar="N", help=f"numbers of heads {DEFAULT}")
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.collectives")
