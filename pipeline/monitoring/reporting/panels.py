"""Chooses the charts of a page: everything that one run has logged, or the curves of several runs in the same charts.

Heads and runs keep their colours in all charts. Runs are compared by the loss of head 1, which has the same meaning for
any number of heads. If one run is much longer than another, the x axis is logarithmic, so that both can be seen.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipeline.monitoring.reporting import curves
from pipeline.monitoring.reporting.chart import Chart, Line, Mark, value_range
from pipeline.monitoring.reporting.run_folder import RunFolder
from pipeline.monitoring.reporting.summary import launches_of

MOST_TAGS = 30  # charts of tags that this version does not know
MOST_MARKS = 200
BEGINNING = 0.02  # share of a run that does not count for the scale of losses
N_COLOURS = 8
MUCH_LONGER = 8  # times as long


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A tag that this version knows, and how to draw it."""

    tag: str
    title: str
    unit: str
    scale: float = 1.0
    noisy: bool = False
    from_zero: bool = False
    may_be_log: bool = False
    is_measured: bool = True  # if not, whole numbers count or name something, such as a rank, and have no mean


QUANTITIES = (
    Quantity(tag="throughput/tokens_per_s", title="Throughput", unit="tokens/s", noisy=True, from_zero=True),
    Quantity(tag="throughput/mfu", title="Model FLOPs utilisation", unit="%", scale=100, noisy=True, from_zero=True),
    Quantity(tag="optim/grad_norm", title="Gradient norm before clipping", unit="L2", noisy=True, may_be_log=True),
    Quantity(tag="optim/lr", title="Learning rate", unit="", from_zero=True),
    Quantity(tag="memory/peak_GiB", title="Peak memory of rank 0", unit="GiB", from_zero=True),
    Quantity(tag="data/wait_s", title="Waiting for data", unit="s per report", noisy=True, from_zero=True),
)
COUNTS = (
    Quantity(tag="faults/skipped_steps", title="Skipped steps so far", unit="steps", from_zero=True, is_measured=False),
    Quantity(
        tag="faults/skipped_windows",
        title="Windows of damaged shards so far",
        unit="windows",
        from_zero=True,
        is_measured=False,
    ),
)
_SHOWN_OTHERWISE = {"loss/total", "progress/tokens"}  # the sum of the losses shown, and the x axis


@dataclass(frozen=True, kw_only=True)
class Panels:
    """Charts in the order of the page: large, ordinary, and small ones for unknown tags."""

    large: list[Chart]
    ordinary: list[Chart]
    small: list[Chart]
    n_tags_left_out: int
    is_log: bool
    """True if the x axes are logarithmic."""

    @property
    def has_exact_lines(self) -> bool:
        """True if a line shows numbers that count or name something."""
        return any(line.is_exact for chart in (*self.large, *self.ordinary, *self.small) for line in chart.lines)


def panels(runs: Sequence[RunFolder], *, names: Sequence[str]) -> Panels:
    """Return the charts of these runs; `names` are their labels."""
    draw = _Drawing(runs, names)
    known = {quantity.tag for quantity in (*QUANTITIES, *COUNTS)} | _SHOWN_OTHERWISE
    of_heads = {tag for run in runs for tag in (*run.head_tags, *run.validation_tags)}
    others = sorted({tag for run in runs for tag in run.series} - known - of_heads, key=_by_numbers)
    large = draw.losses("head_tags", "Training loss", noisy=True)
    ordinary = draw.losses("validation_tags", "Validation loss", noisy=False)
    if len(runs) > 1:  # comparable charts come before the heads of each run
        large, ordinary = large[:1], [*ordinary[:1], *large[1:], *ordinary[1:]]
    ordinary += filter(None, map(draw.quantity, QUANTITIES))
    counted = [quantity for quantity in COUNTS if any(_any_above_zero(run, quantity.tag) for run in runs)]
    ordinary += filter(None, map(draw.quantity, counted))
    unknown = [
        Quantity(tag=tag, title=tag, unit="", noisy=True, may_be_log=True, is_measured=False)
        for tag in others[:MOST_TAGS]
    ]
    return Panels(
        large=large,
        ordinary=ordinary,
        small=list(filter(None, map(draw.quantity, unknown))),
        n_tags_left_out=len(others) - len(unknown),
        is_log=draw.is_log,
    )


class _Drawing:
    """Draws charts with the x axis, colours and marks that all charts of a page share."""

    def __init__(self, runs: Sequence[RunFolder], names: Sequence[str]) -> None:
        self._runs, self._names = runs, names
        self._is_single = len(runs) == 1
        self._in_tokens = all(run.tokens_per_step for run in runs if run.series)
        ends = [float(self._x(run, np.array([run.last_step]))[0]) for run in runs if run.last_step]
        most = max(ends, default=1.0)
        self.is_log = most >= MUCH_LONGER * min(ends, default=1.0)
        unit, name = curves.token_unit(most) if self._in_tokens else (1.0, "")
        label = ("tokens" + (f", {name}" if name else "")) if self._in_tokens else "step"
        self._base = Chart(
            title="", unit="", lines=(), x_most=most, x_scale=unit, x_least=self._least() if self.is_log else None,
            x_label=f"{label}, log scale" if self.is_log else label,
        )  # fmt: skip
        self._marks = [list(_marks(run, self._x)) for run in runs]

    def losses(self, tags: str, title: str, *, noisy: bool) -> list[Chart]:
        """Return a chart of head 1 of all runs if there are several, and one of each run's heads, on the same scale."""
        base = replace(self._base, unit="nats per token", noisy=noisy, may_be_log=True)
        charts = [] if self._is_single else [self._first_heads(base, tags, title)]
        of_runs = [
            [self._line(run, tag, f"head {_head(tag)}", _head_colour(tag)) for tag in getattr(run, tags)]
            for run in self._runs
        ]
        y_range = self._loss_range([line for lines in of_runs for line in lines])
        for name, lines, marks in zip(self._names, of_runs, self._marks, strict=True):
            whose = "" if self._is_single else f": {name}"
            charts.append(replace(base, title=f"{title} per head{whose}", lines=lines, marks=marks, y_range=y_range))
        return [chart for chart in charts if chart.lines]

    def quantity(self, quantity: Quantity) -> Chart | None:
        """Return the chart of a tag, or None if no run has it."""
        lines: list[Line] = []
        marks: list[Mark] = []
        for i, run in enumerate(self._runs):
            if quantity.tag in run.series:
                label, colour = ("", "single") if self._is_single else (self._names[i], _run_colour(i))
                line = self._line(run, quantity.tag, label, colour)
                is_exact = not quantity.is_measured and _are_whole(line.y)
                lines.append(replace(line, y=line.y * quantity.scale, is_exact=is_exact))
                marks += self._marks[i] if self._is_single else self._coloured_marks(i)
        if not lines:
            return None
        return replace(
            self._base, title=quantity.title, unit=quantity.unit, lines=lines, marks=marks, noisy=quantity.noisy,
            from_zero=quantity.from_zero,
            may_be_log=quantity.may_be_log and not all(line.is_exact for line in lines),
        )  # fmt: skip

    def _first_heads(self, base: Chart, tags: str, title: str) -> Chart:
        having = [i for i, run in enumerate(self._runs) if getattr(run, tags)]
        lines = [
            self._line(self._runs[i], getattr(self._runs[i], tags)[0], self._names[i], _run_colour(i)) for i in having
        ]
        marks = [mark for i in having for mark in self._coloured_marks(i)]
        return replace(base, title=f"{title} of head 1", lines=lines, marks=marks, y_range=self._loss_range(lines))

    def _loss_range(self, lines: Sequence[Line]) -> tuple[float, float] | None:
        """Return the range of losses after the beginning, whose steep fall would leave no room for the rest.

        A logarithmic x axis has room for it.
        """
        return value_range(lines, without_first=0.0 if self.is_log else BEGINNING) or value_range(lines)

    def _least(self) -> float:
        """Return the first x that any run has beyond 0."""
        positive = [(run, steps[steps > 0]) for run in self._runs for steps in (s.steps for s in run.series.values())]
        return min((float(self._x(run, steps[:1])[0]) for run, steps in positive if len(steps)), default=1.0)

    def _coloured_marks(self, i: int) -> list[Mark]:
        return [replace(mark, colour=_run_colour(i)) for mark in self._marks[i]]

    def _line(self, run: RunFolder, tag: str, label: str, colour: str) -> Line:
        series = run.series[tag]
        return Line(label=label, colour=colour, x=self._x(run, series.steps), y=series.values)

    def _x(self, run: RunFolder, steps: np.ndarray) -> np.ndarray:
        return steps * float(run.tokens_per_step or 1) if self._in_tokens else steps.astype(np.float64)


def _marks(run: RunFolder, x: Callable[[RunFolder, np.ndarray], np.ndarray]) -> Iterator[Mark]:
    found = [("resumed", launch.step, f"resumed after step {launch.step:,}") for launch in launches_of(run)[1:]]
    for event in run.history:
        if event.get("event") == "rollback" and isinstance(event.get("to_step"), int):
            text = f"rolled back from step {event.get('step')} to {event['to_step']:,}"
            found.append(("rollback", event["to_step"], text))
    for bad in run.bad_steps:
        found.append(("skipped", bad["step"], f"step {bad['step']:,}: {bad.get('verdict', 'bad')}"))
    for kind, step, text in found[-MOST_MARKS:]:
        if 0 <= step <= run.last_step:
            yield Mark(x=float(x(run, np.array([step]))[0]), kind=kind, text=text)


def _by_numbers(tag: str) -> list[tuple[int, str]]:
    """Return a sort key by which rank_2 comes before rank_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]{1,9})", tag)]


def _head(tag: str) -> int:
    return int(tag.rpartition("_")[2])


def _head_colour(tag: str) -> str:
    return f"h{(_head(tag) - 1) % N_COLOURS + 1}"


def _run_colour(index: int) -> str:
    return f"r{index % N_COLOURS + 1}"


def _are_whole(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool((finite == np.round(finite)).all())


def _any_above_zero(run: RunFolder, tag: str) -> bool:
    return tag in run.series and bool((run.series[tag].values > 0).any())
