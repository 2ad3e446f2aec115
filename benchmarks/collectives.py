"""How often a training step sends each parameter over the network, by n: collectives counted on real ranks.

    python -m benchmarks.collectives [--jsons zero3_fp32 zero2_fp32 zero1_fp32] [--n 1 4] [--json FILE]

An ordinary implementation of the paper's Figure 2 calls backward once per head, and with it the hooks that gather and
reduce. Here the engine sees one forward and one backward, so that n = 4 may not send more than n = 1. Every collective
of the third step is entered as torch dispatches it, by what it does: elements that ranks gather (each rank's part of
parameters, whole again) and that they reduce (gradients), over the parameters of the model. ZeRO-3 is shown twice:
with room to keep gathered parameters from forward to backward, and, `tight`, without.
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import answer, markdown, on_ranks
from benchmarks.parts.outputs import check_json
from benchmarks.parts.steps import Case
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.model.formulas import parameter_count

SHAPE = Case(dim=128, n_layers=8, n_heads=4, vocab_size=2048, seq_len=64, micro_batch_size=2)
# No parameter stays on all ranks, and in the tight case none stays gathered for later.
ALL_PARTITIONED = {"stage3_param_persistence_threshold": 0}
TIGHT = {"stage3_max_live_parameters": 0, "stage3_max_reuse_distance": 0}
GATHERS = {"allgather_", "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_"}
REDUCES = {"allreduce_", "reduce_scatter_", "_reduce_scatter_base_", "reduce_"}
SMALL = 64  # elements: norms, flags and losses are agreed on, no parameters


@dataclass(frozen=True, kw_only=True)
class Counted:
    """One step's collectives on one rank: calls, and elements over the model's parameters."""

    json: str
    tight: bool
    n_future_tokens: int
    gathers: int
    gathered: float
    reduces: int
    reduced: float


def counted(ways: Sequence[tuple[str, bool]], *, heads: Sequence[int], ranks: int = 2) -> list[Counted]:
    """Return the counts of each DeepSpeed JSON, tight or not, for each number of heads."""
    todo = [[name, tight, n] for (name, tight), n in itertools.product(ways, heads)]
    return [Counted(**row) for row in on_ranks("benchmarks.collectives", todo, ranks=ranks, DS_ACCELERATOR="cpu")]


def count_here(path: Path) -> None:
    """Be one of the ranks; rank 0 leaves its counts."""
    import torch

    from pipeline.runtime.world import world_from_environment
    from pipeline.training.process_group import process_group

    world, found = world_from_environment(), []
    with process_group(world):
        for name, tight, n in json.loads(path.read_text(encoding="utf-8")):
            found.append(_third_step(name, tight=tight, n_future_tokens=n, ranks=world.world_size))
            torch.distributed.barrier()
    if world.is_main:
        answer(path, [asdict(one) for one in found])


def _third_step(name: str, *, tight: bool, n_future_tokens: int, ranks: int) -> Counted:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from pipeline.data.batches import Batch
    from pipeline.training.engine import build_engine

    class Log(TorchDispatchMode):
        """Counts collectives of parameters or gradients, and their elements."""

        def __init__(self) -> None:
            super().__init__()
            self.calls: Counter[str] = Counter()
            self.elements: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            namespace, _, name = func.name().partition("::")
            if namespace == "c10d":
                name = name.partition(".")[0]
                kind = "gather" if name in GATHERS else "reduce" if name in REDUCES else name
                # what is gathered is in the outputs, what is reduced in the inputs; both are given
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
    shape = (case.micro_batch_size, case.seq_len)
    targets = torch.zeros(*shape, n_future_tokens, dtype=torch.int64)
    batches = itertools.repeat(Batch(torch.zeros(shape, dtype=torch.int64), targets))
    for _ in range(2):  # the first step records in which order ZeRO-3 has to gather
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


def main(argv: Sequence[str] | None = None) -> None:
    """Count, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    parser = command_parser("benchmarks.collectives", description=__doc__)
    usual = ["zero1_fp32", "zero2_fp32", "zero3_fp32"]
    parser.add_argument("--jsons", nargs="+", default=usual, help="files of ds_configs/ (default: %(default)s)")
    parser.add_argument("--n", type=int, nargs="+", default=[1, 4], help="numbers of heads (default: %(default)s)")
    parser.add_argument("--ranks", type=int, default=2, help="default: %(default)s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    parser.add_argument("--todo", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.todo is not None:
        count_here(arguments.todo)
        return
    check_json(arguments.json)
    ways = [(name, tight) for name in arguments.jsons for tight in ((False, True) if "zero3" in name else (False,))]
    found = counted(ways, heads=arguments.n, ranks=arguments.ranks)
    rows = [
        ["way", "n", "gathers", "parameters gathered, of the model", "reductions", "gradients reduced, of the model"]
    ]
    for one in found:
        name = f"{one.json}, tight" if one.tight else one.json
        figures = [str(one.gathers), f"{one.gathered:.3f}", str(one.reduces), f"{one.reduced:.3f}"]
        rows.append([name, str(one.n_future_tokens), *figures])
    print(markdown(rows))
    if arguments.json is not None:
        write_json(arguments.json, [asdict(one) for one in found])


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.collectives")
