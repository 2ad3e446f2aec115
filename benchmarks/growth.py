"""Measures how a step's time and memory grow, one axis at a time, compared with proportional growth.

    python -m benchmarks.growth [--axes seq_len micro_batch layers vocabulary heads ranks] [--json FILE] [--plot FILE]

Each axis varies one property of the same small model with head-sequential n = 4 and one thread per rank. All points of
an axis take turns in one process group; on the axis of ranks, each number of ranks has a group of its own. The dashed
lines are the first point's time scaled by the model's FLOPs, and the memory held between steps: weights, optimizer
state, buffers. On the axis of ranks, every rank has the same micro batch, so the dashed line is level: any increase is
communication, and contention between ranks on one machine.
"""

from common.endings import exit_on_user_error

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import DEFAULT, benchmark_parser, markdown, run_benchmark
from benchmarks.parts.rounds import spread
from benchmarks.parts.steps import Case, CaseTimes, time_steps

BASE = Case(
    dim=256, n_layers=8, n_heads=4, vocab_size=2048, n_future_tokens=4, seq_len=256, micro_batch_size=2
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of growth: a field of the case, or the number of ranks, and its values."""

    label: str
    field: str
    values: tuple[int, ...]

    def case(self, value: int) -> Case:
        """Return the case at one point."""
        changes: dict[str, Any] = {} if self.field == "ranks" else {self.field: value}
        return replace(BASE, **changes)

    def ranks(self, value: int) -> int:
        """Return the number of ranks at one point."""
        return value if self.field == "ranks" else 1


AXES = {
    "seq_len": Axis(label="tokens per sequence", field="seq_len", values=(128, 256, 512, 1024, 2048)),
    "micro_batch": Axis(label="sequences per micro batch", field="micro_batch_size", values=(1, 2, 4, 8)),
    "layers": Axis(label="layers, heads included", field="n_layers", values=(6, 8, 12, 16)),
    "vocabulary": Axis(label="vocabulary", field="vocab_size", values=(1024, 2048, 4096, 8192)),
    "heads": Axis(label="heads", field="n_future_tokens", values=(1, 2, 4, 7)),
    "ranks": Axis(label="ranks, each with its own micro batch", field="ranks", values=(1, 2)),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of an axis; `expected_s` is the first point's step time scaled by the FLOPs per rank."""

    value: int
    measured: CaseTimes
    expected_s: float

    @property
    def step_s(self) -> float:
        """The median step time, in seconds."""
        return spread(self.measured.seconds).median


def flops(case: Case) -> int:
    """Return the model FLOPs of one rank's step."""
    return case.flops_per_token * case.seq_len * case.micro_batch_size


def points_of(axis: Axis, measured: Sequence[CaseTimes]) -> list[Point]:
    """Return the points of an axis, with the step times that proportional growth predicts from the first."""
    first = measured[0]
    first_s = spread(first.seconds).median
    return [
        Point(value=value, measured=one, expected_s=first_s * flops(one.case) / flops(first.case))
        for value, one in zip(axis.values, measured, strict=True)
    ]


def measure_axis(axis: Axis, *, warm_up: int, repeats: int) -> tuple[list[Point], str]:
    """Measure an axis; return its points and the device's name."""
    found: list[CaseTimes] = []
    device = ""
    for ranks in dict.fromkeys(axis.ranks(value) for value in axis.values):
        cases = [axis.case(value) for value in axis.values if axis.ranks(value) == ranks]
        more, device = time_steps(cases, ranks=ranks, threads=1, warm_up=warm_up, repeats=repeats)
        found += more
    return points_of(axis, found), device


def table(axis: Axis, points: Sequence[Point]) -> str:
    """Return one axis as a Markdown table."""
    rows = [[axis.label, "step, s", "over the first", "FLOPs over the first", "peak, MB", "peak - resident, MB"]]
    for point in points:
        one, first = point.measured, points[0]
        rows.append(
            [
                f"{point.value:,}",
                str(spread(one.seconds)),
                f"{point.step_s / first.step_s:.2f}",
                f"{point.expected_s / first.step_s:.2f}",
                f"{one.peak_bytes / 1e6:.1f}",
                f"{(one.peak_bytes - one.resident_bytes) / 1e6:.1f}",
            ]
        )
    return markdown(rows)


def plot(found: dict[str, list[Point]], path: Path, *, title: str) -> None:
    """Draw times above and memory below, with one column per axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 6), layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for column, (name, points) in enumerate(found.items()):
        values = [point.value for point in points]
        spreads = [spread(point.measured.seconds) for point in points]
        errors: Any = [[s.median - s.lower for s in spreads], [s.upper - s.median for s in spreads]]
        times, memory = grid[0][column], grid[1][column]
        times.errorbar(values, [point.step_s for point in points], yerr=errors, marker="o", capsize=3, label="measured")
        times.plot(values, [point.expected_s for point in points], "--", color="grey", label="by FLOPs")
        memory.plot(values, [point.measured.peak_bytes / 1e6 for point in points], "o-", label="peak")
        resident = [point.measured.resident_bytes / 1e6 for point in points]
        memory.plot(values, resident, "--", color="grey", label="between steps")
        memory.set(xlabel=AXES[name].label)
        for panel in (times, memory):
            panel.set_ylim(bottom=0)
            panel.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
    grid[0][0].set(ylabel="step, s")
    grid[1][0].set(ylabel="memory per rank, MB")
    grid[0][0].legend(fontsize="small")
    grid[1][0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure each axis, print its table, draw the plot if asked, and return the figures."""
    found, device = {}, ""
    for name in arguments.axes:
        found[name], device = measure_axis(AXES[name], warm_up=arguments.warm_up, repeats=arguments.repeats)
        print(f"{table(AXES[name], found[name])}\n", flush=True)
    if arguments.plot is not None:
        title = f"A step of {BASE.n_future_tokens} heads, dim {BASE.dim}, {BASE.n_layers} layers; {device}"
        plot(found, arguments.plot, title=title)
    return {"device": device, "axes": {name: [asdict(point) for point in points] for name, points in found.items()}}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = benchmark_parser("benchmarks.growth", description=__doc__, warm_up=1, repeats=3, plot=True)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help=f"axes to measure {DEFAULT}")
    run_benchmark(parser, measure, argv)


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.growth")
