"""Step time and peak memory of n = 1, 2, 4 and 8, head-sequential and as a naive sum, compared with a limit and peers.

    python -m benchmarks.train_step [--shapes deep wide] [--n 1 2 4 8] [--ranks 1] [--no-compiled] [--json FILE]

The limit: n heads that replace trunk layers cost the FLOPs of n - 1 more unembeddings, and nothing else. So the time of
a step with n heads, divided by that of a step with n = 1, is compared with the ratio of their model FLOPs ("FLOPs over
n = 1" in the table); "over the limit" is the first ratio divided by the second. A step includes the optimizer's update,
which is the same for every n.

Peers train under the same DeepSpeed JSON: transformers' LlamaForCausalLM of the same shape (n = 1), the same with
liger-kernel (--peers transformers liger lingua, on a GPU), and lingua's n linear heads under activation checkpointing,
beside our linear heads. Ratios are to our head-sequential n = 1 in the same round: medians, with quartiles in brackets.
"""

from common.endings import exit_on_user_error

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

from benchmarks.parts.harness import COUNT, DEFAULT, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.rounds import Spread, ratio, spread
from benchmarks.parts.steps import Case, CaseTimes, time_steps
from pipeline.config.model import MODEL_SIZES
from pipeline.runtime.devices import peak_flops

# Small enough for two CPU cores. In one the layers cost most, as in large models; in the other the unembedding does.
SMALL = {
    "deep": Case(dim=384, n_layers=9, n_heads=6, vocab_size=2048, seq_len=256, micro_batch_size=4),
    "wide": Case(dim=256, n_layers=9, n_heads=4, vocab_size=16_384, seq_len=256, micro_batch_size=4),
}
LARGE = {
    name: Case(dim=dim, n_layers=n_layers, n_heads=n_heads, vocab_size=32_000, seq_len=4096, micro_batch_size=1)
    for name, (dim, n_layers, n_heads) in MODEL_SIZES.items()
}
SHAPES = SMALL | LARGE
PEERS = ("transformers", "liger", "lingua")


def cases_of(base: Case, *, heads: Sequence[int], peers: Sequence[str], compiled: bool) -> list[Case]:
    """Return the cases to measure for one shape; the first is head-sequential n = 1, the base of all ratios."""
    first = replace(base, n_future_tokens=1)
    cases = [replace(first, n_future_tokens=n) for n in sorted({1, *heads})]
    cases += [replace(case, way="naive") for case in cases]
    cases += [replace(first, way=way) for way in ("transformers", "liger") if way in peers]
    fusible = [first, replace(first, n_future_tokens=max(heads)), *(c for c in cases if c.way == "transformers")]
    cases += [replace(case, compile=True) for case in dict.fromkeys(fusible)] if compiled else []
    if "lingua" in peers:
        linear = replace(first, n_future_tokens=4, linear_heads=True)
        cases += [replace(linear, way=way) for way in ("sequential", "naive", "lingua")]
    return cases


def flops_ratio(case: Case, base: Case) -> float:
    """Return the case's model FLOPs over those of `base`, the limit of the ratio of their step times."""
    return case.flops_per_token / base.flops_per_token


def figures(measured: Sequence[CaseTimes], *, device: str, ranks: int) -> list[dict[str, Any]]:
    """Return the figures of each case of one shape, compared with the first; `mfu` if the device's peak is known."""
    return [_figures_of(one, base=measured[0], device=device, ranks=ranks) for one in measured]


def _figures_of(one: CaseTimes, *, base: CaseTimes, device: str, ranks: int) -> dict[str, Any]:
    limit, over = flops_ratio(one.case, base.case), ratio(one.seconds, base.seconds)
    return {
        "case": asdict(one.case),
        "name": one.case.name,
        "seconds": one.seconds,
        "step_s": asdict(spread(one.seconds)),
        "step_ratio": asdict(over),
        "flops_ratio": limit,
        "of_limit": over.median / limit,
        **_throughput(one, device=device, ranks=ranks),
        "peak_bytes": one.peak_bytes,
        "resident_bytes": one.resident_bytes,
        "peak_ratio": one.peak_bytes / base.peak_bytes,
    }


def _throughput(one: CaseTimes, *, device: str, ranks: int) -> dict[str, float]:
    case, peak = one.case, peak_flops(device, precision=one.case.precision)
    per_rank = case.micro_batch_size * case.seq_len / spread(one.seconds).median
    mfu = {} if peak is None else {"mfu": per_rank * case.flops_per_token / peak}
    return {"tokens_per_s": ranks * per_rank, **mfu}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one shape's figures as a Markdown table."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "way": lambda row: row["name"],
        "step, s": lambda row: str(Spread(**row["step_s"])),
        "over n = 1": lambda row: str(Spread(**row["step_ratio"])),
        "FLOPs over n = 1": lambda row: f"{row['flops_ratio']:.3f}",
        "over the limit": lambda row: f"{row['of_limit']:.3f}",
        "tokens/s": lambda row: f"{row['tokens_per_s']:,.0f}",
        **({"MFU": lambda row: f"{row['mfu']:.1%}"} if "mfu" in rows[0] else {}),
        "peak, MB": lambda row: f"{row['peak_bytes'] / 1e6:.1f}",
        "peak over n = 1": lambda row: f"{row['peak_ratio']:.3f}",
    }
    return markdown([list(columns), *([cell(row) for cell in columns.values()] for row in rows)])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each shape, print its table, and return the figures."""
    found = {}
    for name in arguments.shapes:
        base = _base_case(arguments, SHAPES[name])
        cases = cases_of(base, heads=arguments.n, peers=arguments.peers, compiled=arguments.compiled)
        measured: list[CaseTimes] = []
        for group in [[case] for case in cases] if arguments.separately else [cases]:
            counts = {option: getattr(arguments, option) for option in ("ranks", "threads", "warm_up", "repeats")}
            more, device = time_steps(group, **counts)
            measured += more
        rows = figures(measured, device=device, ranks=arguments.ranks)
        print(
            f"{name}: dim {base.dim}, {base.n_layers} layers, V = {base.vocab_size:,}, {base.micro_batch_size} x"
            f" {base.seq_len:,} tokens per rank, {base.json}, {arguments.ranks} ranks, {device}\n\n{table(rows)}\n",
            flush=True,
        )
        found[name] = {"device": device, "ranks": arguments.ranks, "cases": rows}
    return found


def _base_case(arguments: argparse.Namespace, shape: Case) -> Case:
    """Return a shape with the changes that the command line asks for."""
    changed = {"json": arguments.deepspeed_json, "activation_checkpointing": arguments.activation_checkpointing}
    for field in ("seq_len", "micro_batch_size"):
        if getattr(arguments, field) is not None:
            changed[field] = getattr(arguments, field)
    return replace(shape, **changed)


def _problems(arguments: argparse.Namespace) -> list[str]:
    if "liger" in arguments.peers and find_spec("liger_kernel") is None:
        return ["--peers liger needs the package liger-kernel: pip install liger-kernel, or leave it out"]
    return []


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.train_step", description=__doc__, ranks=1, warm_up=1, repeats=4)
    add = parser.add_argument
    add("--shapes", nargs="+", choices=SHAPES, default=list(SMALL), help=f"small shapes, or the paper's {DEFAULT}")
    add("--n", type=COUNT, nargs="+", default=[1, 2, 4, 8], metavar="N", help=f"numbers of heads {DEFAULT}")
    peers_help = f"other implementations to compare with {DEFAULT}"
    add("--peers", nargs="*", choices=PEERS, default=["transformers", "lingua"], help=peers_help)
    compiled_help = "also measure n = 1, the most heads, and transformers with torch.compile on each layer"
    add("--compiled", action=argparse.BooleanOptionalAction, default=True, help=compiled_help)
    add("--deepspeed_json", default="zero1_fp32", metavar="NAME", help=f"a file of ds_configs/ {DEFAULT}")
    add("--seq_len", type=COUNT, metavar="N", help="tokens per sequence (default: the shape's)")
    add("--micro_batch_size", type=COUNT, metavar="N", help="sequences per micro batch (default: the shape's)")
    add("--activation_checkpointing", action="store_true", help="recompute activations in our own models")
    separately_help = "measure one case after the other, not in turns, if the device cannot hold all of them"
    add("--separately", action="store_true", help=separately_help)
    add("--threads", type=COUNT, default=1, metavar="N", help=f"CPU threads of each rank {DEFAULT}")
    run_benchmark(parser, measure, argv, check=_problems)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.train_step")
