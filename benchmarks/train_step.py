"""Step time and peak memory of n = 1, 2, 4 and 8, head-sequential and as a naive sum, beside the limit and peers.

    python -m benchmarks.train_step [--shapes deep wide] [--n 1 2 4 8] [--ranks 1] [--no-compiled] [--json FILE]

The limit: n heads in the place of trunk layers cost the FLOPs of n - 1 unembeddings more, and nothing else. So a step
of n heads over one of n = 1 is held against the ratio of their model FLOPs, "FLOPs over n = 1" in the table; "of the
limit" is the one over the other. The optimizer's update, the same for every n, is in a step.

Peers, under the same DeepSpeed JSON: transformers' LlamaForCausalLM of the same shape (n = 1), the same with
liger-kernel (--peers transformers liger lingua, on a GPU), and lingua's n linear heads under activation checkpointing,
beside our linear heads. Ratios are to our head-sequential n = 1, in the same round; medians, in brackets quartiles.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import Spread, markdown, ratio, spread
from benchmarks.parts.outputs import check_json
from benchmarks.parts.steps import Case, Measured, measure
from common.command_line import UserError, command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.model import MODEL_SIZES
from pipeline.runtime.devices import peak_flops

# Small enough for two cores: one whose layers cost most, as those of large models do, and one whose unembedding does.
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
    """Return what is measured side by side for one shape; head-sequential n = 1, to which all is compared, leads."""
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
    """Return the case's model FLOPs over those of `base`: what its step may take, in steps of `base`."""
    return case.flops_per_token / base.flops_per_token


def figures(measured: Sequence[Measured], *, device: str, ranks: int) -> list[dict[str, Any]]:
    """Return what came of each case of one shape, compared to the first; `mfu` where the device's peak is known."""
    return [_figures_of(one, base=measured[0], device=device, ranks=ranks) for one in measured]


def _figures_of(one: Measured, *, base: Measured, device: str, ranks: int) -> dict[str, Any]:
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


def _throughput(one: Measured, *, device: str, ranks: int) -> dict[str, float]:
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
        "of the limit": lambda row: f"{row['of_limit']:.3f}",
        "tokens/s": lambda row: f"{row['tokens_per_s']:,.0f}",
        **({"MFU": lambda row: f"{row['mfu']:.1%}"} if "mfu" in rows[0] else {}),
        "peak, MB": lambda row: f"{row['peak_bytes'] / 1e6:.1f}",
        "peak over n = 1": lambda row: f"{row['peak_ratio']:.3f}",
    }
    return markdown([list(columns), *([cell(row) for cell in columns.values()] for row in rows)])


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each shape, print its table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist, or a peer's package.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    if "liger" in arguments.peers and find_spec("liger_kernel") is None:
        raise UserError("--peers liger needs the package liger-kernel: pip install liger-kernel, or leave it out")
    found = {}
    for name in arguments.shapes:
        changed = {"json": arguments.deepspeed_json, "activation_checkpointing": arguments.activation_checkpointing}
        for field in ("seq_len", "micro_batch_size"):
            if getattr(arguments, field) is not None:
                changed[field] = getattr(arguments, field)
        cases = cases_of(
            replace(SHAPES[name], **changed), heads=arguments.n, peers=arguments.peers, compiled=arguments.compiled
        )
        measured: list[Measured] = []
        for group in [[case] for case in cases] if arguments.separately else [cases]:
            more, device = measure(
                group,
                ranks=arguments.ranks,
                threads=arguments.threads,
                warm_up=arguments.warm_up,
                repeats=arguments.repeats,
            )
            measured += more
        base, rows = cases[0], figures(measured, device=device, ranks=arguments.ranks)
        print(
            f"{name}: dim {base.dim}, {base.n_layers} layers, V = {base.vocab_size:,}, {base.micro_batch_size} x"
            f" {base.seq_len:,} tokens a rank, {base.json}, {arguments.ranks} ranks, {device}\n\n{table(rows)}\n",
            flush=True,
        )
        found[name] = {"device": device, "ranks": arguments.ranks, "cases": rows}
    if arguments.json is not None:
        write_json(arguments.json, found)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmarks.train_step", description=__doc__)
    default = "default: %(default)s"
    parser.add_argument(
        "--shapes", nargs="+", choices=SHAPES, default=list(SMALL), help=f"small ones, or the paper's ({default})"
    )
    parser.add_argument("--n", type=int, nargs="+", default=[1, 2, 4, 8], help=f"numbers of heads ({default})")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=["transformers", "lingua"], help=default)
    parser.add_argument(
        "--compiled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="n = 1, the most heads, and transformers also with torch.compile over each layer",
    )
    parser.add_argument(
        "--deepspeed_json", default="zero1_fp32", metavar="NAME", help=f"a file of ds_configs/ ({default})"
    )
    parser.add_argument("--seq_len", type=int, help="in the place of the shape's own")
    parser.add_argument("--micro_batch_size", type=int, help="in the place of the shape's own")
    parser.add_argument("--activation_checkpointing", action="store_true", help="of our own models")
    parser.add_argument(
        "--separately",
        action="store_true",
        help="each case after the other instead of in turns, where a device cannot hold all of them",
    )
    parser.add_argument("--ranks", type=int, default=1, help=default)
    parser.add_argument("--threads", type=int, default=1, help=f"of each rank on the CPU ({default})")
    parser.add_argument("--warm_up", type=int, default=1, help=f"rounds that do not count ({default})")
    parser.add_argument("--repeats", type=int, default=4, help=f"rounds that do ({default})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.train_step")
