"""Peak memory and time of conversions, each the real command in a process of its own.

    python -m benchmarks.conversion [--size 0.6B] [--json FILE]

The model is random, and written as a checkpoint in several parts, as a run leaves it. Two peaks are measured from
outside: private memory, which the system cannot reclaim, and resident memory, which includes the pages of mapped files.
From each, the peak of the same command on a tiny model is subtracted (Python and its libraries).
"""

from common.endings import exit_on_user_error

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.parts.harness import DEFAULT, benchmark_parser, markdown, run_benchmark
from pipeline.config.model import MODEL_SIZES, ModelConfig, resolve_model
from pipeline.model.formulas import parameter_count
from pipeline.weights.formats.export import ExportOptions
from pipeline.weights.formats.stored_model import StoredModel, shapes_by_name
from pipeline.weights.formats.training import write_checkpoint

GB = 10**9
ROUTE = [("run", "meta", "fp32"), ("run", "hf", "fp32"), ("run", "hf", "bf16"), ("meta", "hf", "fp32"),
         ("hf", "meta", "fp32"), ("hf", "deepspeed", "fp32")]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ProcessPeak:
    """The peak resident and private memory of one process, in bytes, and its wall time."""

    resident: int
    private: int
    seconds: float


def write_random_run(folder: Path, config: ModelConfig) -> None:
    """Write a checkpoint of random weights to a new folder."""
    generator = torch.Generator().manual_seed(1)
    shapes = shapes_by_name(config)
    source = StoredModel(path=folder, config=config, read=lambda name: torch.randn(shapes[name], generator=generator))
    folder.mkdir()
    write_checkpoint(source, folder, ExportOptions())


def measure_conversion(source: Path, to: str, dtype: str, output: Path) -> ProcessPeak:
    """Run one conversion and return its peaks.

    Raises:
        RuntimeError: the command failed.
    """
    command = [sys.executable, "-m", "pipeline.convert", "--input", str(source), "--to", to]
    command += ["--dtype", dtype, "--output", str(output)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    resident = private = 0
    while process.poll() is None:
        fields = _status(process.pid)
        resident = max(resident, fields.get("VmRSS", 0))
        private = max(private, fields.get("RssAnon", 0))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{command}: {process.stderr.read() if process.stderr else ''}")
    return ProcessPeak(resident=resident, private=private, seconds=time.perf_counter() - started)


def _status(pid: int) -> dict[str, int]:
    """Return the memory fields of /proc/PID/status, in bytes; empty if the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {name: int(value.split()[0]) * 1024 for name, value in pairs if value.strip().endswith("kB")}


def measure_all(config: ModelConfig, folder: Path) -> list[tuple[str, str, str, ProcessPeak]]:
    """Return the peaks of each conversion of `ROUTE` for one model, in a new scratch folder."""
    folder.mkdir()
    write_random_run(folder / "run", config)
    return [
        (
            source,
            to,
            dtype,
            measure_conversion(folder / source, to, dtype, folder / (to if dtype == "fp32" else "half")),
        )
        for source, to, dtype in ROUTE
    ]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure every conversion, print the table, and return the figures."""
    config = resolve_model(ModelConfig(size=arguments.size))
    tiny = ModelConfig(dim=64, n_layers=6, n_heads=4, vocab_size=300)
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        base = measure_all(tiny, Path(scratch) / "tiny")
        peaks = measure_all(config, Path(scratch) / "model")
    weights = 4 * parameter_count(config)
    print(f"{arguments.size}, {weights / GB:.2f} GB of fp32 weights; peaks above those of a tiny model, in GB\n")
    rows = [["from", "to", "dtype", "private", "of the weights", "resident", "of the weights", "s"]]
    for (source, to, dtype, peak), (*_, least) in zip(peaks, base, strict=True):
        private, resident = peak.private - least.private, peak.resident - least.resident
        figures = [text for x in (private, resident) for text in (f"{x / GB:.2f}", f"{x / weights:.2f}")]
        rows.append([source, to, dtype, *figures, f"{peak.seconds:.1f}"])
    print(markdown(rows))
    return {
        "size": arguments.size,
        "weights_bytes": weights,
        "peaks": [{"from": s, "to": t, "dtype": d, "peak": asdict(p)} for s, t, d, p in peaks],
        "tiny": [asdict(peak) for *_, peak in base],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.conversion", description=__doc__)
    parser.add_argument("--size", choices=list(MODEL_SIZES), default="0.6B", help=f"size of the model {DEFAULT}")
    scratch_help = "folder for the models, about six times their fp32 weights (default: the system's)"
    parser.add_argument("--scratch", type=Path, metavar="DIR", help=scratch_help)
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.conversion")
