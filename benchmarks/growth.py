"""How a step's time and memory grow with the work: one axis at a time, beside what proportional growth would be.

    python -m benchmarks.growth [--axes seq_len micro_batch layers vocabulary heads ranks] [--json FILE] [--plot FILE]

Each axis is measured around the same small model with head-sequential n = 4, one thread a rank, all points of an axis
in turns in one process group; ranks have a group for each number. Dashed: what the first point would become by the
model's FLOPs, and, of memory, what stays between steps: weights, optimizer state, buffers. On the axis of ranks each
has the same micro batch, so that dashed is level: what a step costs beyond is communication, and what ranks on one
machine take from each other.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.parts.harness import markdown, spread
from benchmarks.parts.outputs import folder_problems
from benchmarks.parts.steps import Case, Measured, measure
from common.command_line import command_parser, exit_on_user_error, raise_if_any
from common.files import write_json

BASE = Case(
    dim=256, n_layers=8, n_heads=4, vocab_size=2048, n_future_tokens=4, seq_len=256, micro_batch_size=2
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What grows: a field of the case, or the ranks, and the values that it takes."""

    label: str
    field: str
    values: tuple[int, ...]

    def case(self, value: int) -> Case:
        """Return the model at one point."""
        changes: dict[str, Any] = {} if self.field == "ranks" else {self.field: value}
        return replace(BASE, **changes)

    def ranks(self, value: int) -> int:
        """Return the ranks at one point."""
        return value if self.field == "ranks" else 1


AXES = {
    "seq_len": Axis(label="tokens of a sequence", field="seq_len", values=(128, 256, 512, 1024, 2048)),
    "micro_batch": Axis(label="sequences of a micro batch", field="micro_batch_size", values=(1, 2, 4, 8)),
    "layers": Axis(label="layers, heads included", field="n_layers", values=(6, 8, 12, 16)),
    "vocabulary": Axis(label="vocabulary", field="vocab_size", values=(1024, 2048, 4096, 8192)),
    "heads": Axis(label="heads", field="n_future_tokens", values=(1, 2, 4, 7)),
    "ranks": Axis(label="ranks, each with its micro batch", field="ranks", values=(1, 2)),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of an axis; `expected_s` is the first point's time in proportion to the FLOPs of a rank."""

    value: int
    measured: Measured
    expected_s: float

    @property
    def step_s(self) -> float:
        """The median."""
        return spread(self.measured.seconds).median


def flops(case: Case) -> int:
    """Return the model FLOPs of one rank's step."""
    return case.flops_per_token * case.seq_len * case.micro_batch_size


def points_of(axis: Axis, measured: Sequence[Measured]) -> list[Point]:
    """Return the axis's points with what proportional growth would make of the first."""
    first = measured[0]
    first_s = spread(first.seconds).median
    return [
        Point(value=value, measured=one, expected_s=first_s * flops(one.case) / flops(first.case))
        for value, one in zip(axis.values, measured, strict=True)
    ]


def measure_axis(axis: Axis, *, warm_up: int, repeats: int) -> tuple[list[Point], str]:
    """Measure an axis; return its points, and the device's name."""
    found: list[Measured] = []
    device = ""
    for ranks in dict.fromkeys(axis.ranks(value) for value in axis.values):
        cases = [axis.case(value) for value in axis.values if axis.ranks(value) == ranks]
        more, device = measure(cases, ranks=ranks, threads=1, warm_up=warm_up, repeats=repeats)
        found += more
    return points_of(axis, found), device


def table(axis: Axis, points: Sequence[Point]) -> str:
    """Return one axis as a Markdown table."""
    rows = [[axis.label, "step, s", "over the first", "FLOPs over the first", "peak, MB", "beyond what stays, MB"]]
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
    """Draw time above and memory below, an axis to a column."""
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
    grid[1][0].set(ylabel="memory of a rank, MB")
    grid[0][0].legend(fontsize="small")
    grid[1][0].legend(fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=110, format="png")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each axis, print its table, and write the files that were asked for.

    Raises:
        UserError: the folder of a file does not exist.
    """
    parser = command_parser("benchmarks.growth", description=__doc__)
    default = "default: %(default)s"
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES), help=default)
    parser.add_argument("--warm_up", type=int, default=1, help=f"rounds that do not count ({default})")
    parser.add_argument("--repeats", type=int, default=3, help=f"rounds that do ({default})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every figure here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves here (PNG)")
    arguments = parser.parse_args(argv)
    raise_if_any(folder_problems(json=arguments.json, plot=arguments.plot), heading="benchmarks.growth")
    found, device = {}, ""
    for name in arguments.axes:
        found[name], device = measure_axis(AXES[name], warm_up=arguments.warm_up, repeats=arguments.repeats)
        print(f"{table(AXES[name], found[name])}\n", flush=True)
    title = f"A step of {BASE.n_future_tokens} heads, dim {BASE.dim}, {BASE.n_layers} layers; {device}"
    if arguments.plot is not None:
        plot(found, arguments.plot, title=title)
    if arguments.json is not None:
        axes = {name: [asdict(point) for point in points] for name, points in found.items()}
        write_json(arguments.json, {"device": device, "axes": axes})


if __name__ == "__main__":
    exit_on_user_error(main, program="benchmarks.growth")
