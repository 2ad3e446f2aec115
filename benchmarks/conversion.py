"""Memory and time of conversions: each is the real command in a process of its own, watched from outside.

The model is random, written as a checkpoint in several parts as a run leaves it. Two peaks, over that of the same
command on a tiny model (Python and its libraries): private memory, which the system cannot have back, and all resident
memory, which also counts pages of mapped files while nobody else needs the room.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.parts.outputs import check_json
from common.command_line import command_parser, exit_on_user_error
from common.files import write_json
from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.model.formulas import parameter_count
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.stored_model import StoredModel, shapes_by_name
from pipeline.weights.formats.training import write_checkpoint

GB = 10**9
ROUTE = [("run", "meta", "fp32"), ("run", "hf", "fp32"), ("run", "hf", "bf16"), ("meta", "hf", "fp32"),
         ("hf", "meta", "fp32"), ("hf", "deepspeed", "fp32")]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What one process took: bytes at most resident and private, and its wall time."""

    resident: int
    private: int
    seconds: float


def write_random_run(folder: Path, config: ModelConfig) -> None:
    """Write a checkpoint of random weights."""
    generator = torch.Generator().manual_seed(1)
    shapes = shapes_by_name(config)
    source = StoredModel(path=folder, config=config, read=lambda name: torch.randn(shapes[name], generator=generator))
    folder.mkdir()
    write_checkpoint(source, folder, ExportOptions())


def measured(source: Path, to: str, dtype: str, output: Path) -> Peak:
    """Run one conversion and return its peaks.

    Raises:
        RuntimeError: it failed.
    """
    command = [
        sys.executable,
        "-m",
        "pipeline.convert",
        "--input",
        source,
        "--to",
        to,
        "--dtype",
        dtype,
        "--output",
        output,
    ]
    started = time.perf_counter()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    resident = private = 0
    while process.poll() is None:
        fields = _status(process.pid)
        resident = max(resident, fields.get("VmRSS", 0))
        private = max(private, fields.get("RssAnon", 0))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{command}: {process.stderr.read() if process.stderr else ''}")
    return Peak(resident=resident, private=private, seconds=time.perf_counter() - started)


def _status(pid: int) -> dict[str, int]:
    """Return the memory fields of /proc/PID/status in bytes; none if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs if value.strip().endswith("kB")}


def measure_all(config: ModelConfig, folder: Path) -> list[tuple[str, str, str, Peak]]:
    """Return the peaks of `ROUTE` for a model in a scratch folder."""
    folder.mkdir()
    write_random_run(folder / "run", config)
    return [
        (source, to, dtype, measured(folder / source, to, dtype, folder / (to if dtype == "fp32" else "half")))
        for source, to, dtype in ROUTE
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the JSON that was asked for.

    Raises:
        UserError: the JSON's folder does not exist.
    """
    arguments = _parse(argv)
    check_json(arguments.json)
    config = resolve_model(ModelConfig(size=arguments.size))
    tiny = ModelConfig(dim=64, n_layers=6, n_heads=4, vocab_size=300)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        base = measure_all(tiny, Path(scratch) / "tiny")
        peaks = measure_all(config, Path(scratch) / "model")
    weights = 4 * parameter_count(config)
    print(f"{arguments.size}, {weights / GB:.2f} GB of fp32 weights; peaks over that of a tiny model, in GB\n")
    print("| from | to | dtype | private | of the weights | resident | of the weights | s |")
    print("|---|---|---|---|---|---|---|---|")
    for (source, to, dtype, peak), (*_, least) in zip(peaks, base, strict=True):
        private, resident = peak.private - least.private, peak.resident - least.resident
        figures = (f"{x / GB:.2f} | {x / weights:.2f}" for x in (private, resident))
        print(f"| {source} | {to} | {dtype} | {' | '.join(figures)} | {peak.seconds:.1f} |")
    if arguments.json is not None:
        rows = [{"from": s, "to": t, "dtype": d, "peak": asdict(p)} for s, t, d, p in peaks]
        tiny_rows = [asdict(peak) for *_, peak in base]
        write_json(arguments.json, {"size": arguments.size, "weights_bytes": weights, "peaks": rows, "tiny": tiny_rows})


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("benchmarks.conversion", description=__doc__)
    parser.add_argument("--size", choices=list(MODEL_SIZES), default="0.6B", help="default: %(default)s")
    scratch_help = "folder for the models, about six times their fp32 weights (default: the system's)"
    parser.add_argument("--scratch", type=Path, metavar="DIR", help=scratch_help)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    return parser.parse_args(argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.conversion")
