"""Draws a chart as SVG. Its colours come from the page (page.css), so that it suits light and dark backgrounds.

Each line shows its points faintly (in a long run, the range of each group of points), and noisy lines a running mean
over them. Whole numbers that name something, such as a rank, are points, and those that count something are steps; no
mean is drawn of either. A line's name stands at its right end, in its colour. A gap in a line is a value that was not
finite, marked by a cross below it. Values above the chart's range are not drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.monitoring.reporting import curves
from pipeline.monitoring.reporting.curves import Floats
from pipeline.monitoring.reporting.markup import Child, Html, tag

LEFT, RIGHT, TOP, BOTTOM = 52, 96, 16, 40
LABEL_HEIGHT = 14
TICKS_ACROSS_PX, TICKS_DOWN_PX, LOG_TICKS_PX = 95, 45, 40
FEW = 40  # a line of at most this many points shows each as a dot


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve."""

    label: str
    colour: str  # a class of page.css
    x: Floats
    y: Floats
    is_exact: bool = False  # its values count or name something; their mean means nothing


@dataclass(frozen=True, kw_only=True)
class Mark:
    """Something that happened at `x`."""

    x: float
    kind: str  # "resumed", "rollback" or "skipped"; also its class in page.css
    text: str
    colour: str = ""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart to draw."""

    title: str
    unit: str  # of the y axis
    lines: Sequence[Line]
    marks: Sequence[Mark] = ()
    x_label: str = "step"
    x_scale: float = 1.0  # x values are divided by this
    x_most: float = 1.0  # end of the x axis, before that division
    x_least: float | None = None  # beginning of a logarithmic x axis; None for a linear one, from 0
    noisy: bool = False  # show a running mean
    from_zero: bool = False  # the y axis starts at 0
    may_be_log: bool = False  # the y axis is logarithmic if the values span more than a factor of 30
    y_range: tuple[float, float] | None = None  # by default, that of the lines


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    is_log: bool = False
    is_whole: bool = False  # only whole numbers have a tick

    def px(self, values: Floats | float) -> Floats:
        values = np.asarray(values, dtype=np.float64)
        if self.is_log:
            with np.errstate(invalid="ignore"):
                values = np.log10(np.maximum(values, self.low) if self.end_px > self.start_px else values)
        low, high = (math.log10(self.low), math.log10(self.high)) if self.is_log else (self.low, self.high)
        return self.start_px + (values - low) / (high - low) * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        span_px = abs(self.end_px - self.start_px)
        if self.is_log:
            found = curves.log_ticks(self.low, self.high)
            decades = [value for value in found if math.log10(value).is_integer()]
            return decades if len(found) * LOG_TICKS_PX > span_px and len(decades) > 1 else found
        between_px = TICKS_DOWN_PX if self.end_px < self.start_px else TICKS_ACROSS_PX
        least = 1.0 if self.is_whole else 0.0
        return curves.linear_ticks(self.low, self.high, about=max(2, round(span_px / between_px)), least=least)


def svg(chart: Chart, *, width: int, height: int) -> Html:
    """Return the chart as an <svg> element with this aspect ratio, which fills the width it is given."""
    x_axis = _Axis(
        low=(chart.x_least or 0.0) / chart.x_scale, high=chart.x_most / chart.x_scale, start_px=LEFT,
        end_px=width - RIGHT, is_log=chart.x_least is not None,
    )  # fmt: skip
    low, high, is_log = _range(chart)
    is_whole = all(line.is_exact for line in chart.lines)
    y_axis = _Axis(low=low, high=high, start_px=height - BOTTOM, end_px=TOP, is_log=is_log, is_whole=is_whole)
    drawn = [_line(line, chart, x_axis, y_axis) for line in chart.lines]
    return tag(
        "svg",
        tag("title", chart.title),
        _grid(chart, x_axis, y_axis, is_log=is_log),
        [_mark(mark, chart, x_axis, y_axis) for mark in chart.marks],
        drawn,
        _end_labels(chart, y_axis, x_px=width - RIGHT + 8),
        viewBox=f"0 0 {width} {height}",
        role="img",
    )


def value_range(lines: Sequence[Line], *, without_first: float = 0.0) -> tuple[float, float] | None:
    """Return the lowest and the highest finite value of all lines, or None if there is none.

    Args:
        lines: the lines.
        without_first: share of each line's own length that is left out.
    """
    values = [line.y[np.isfinite(line.y) & (line.x >= without_first * line.x.max(initial=0.0))] for line in lines]
    values = [of_line for of_line in values if len(of_line)]
    return (min(float(v.min()) for v in values), max(float(v.max()) for v in values)) if values else None


def _range(chart: Chart) -> tuple[float, float, bool]:
    low, high = chart.y_range or value_range(chart.lines) or (0.0, 1.0)
    if chart.may_be_log and low > 0 and high / low > 30:
        return low / 1.15, high * 1.15, True
    if chart.from_zero:
        low = min(low, 0.0)
    room = (high - low) or abs(high) or 1.0
    return low - (0.0 if low == 0 else 0.05 * room), high + 0.05 * room, False


def _grid(chart: Chart, x_axis: _Axis, y_axis: _Axis, *, is_log: bool) -> Child:
    elements: list[Child] = []
    for value in y_axis.ticks():
        y = float(y_axis.px(value))
        elements.append(tag("path", d=f"M{x_axis.start_px} {y:.1f}H{x_axis.end_px}", class_="grid"))
        elements.append(tag("text", curves.tick_label(value), x=LEFT - 7, y=f"{y + 3.5:.1f}", class_="tick end"))
    bottom = y_axis.start_px
    elements.append(tag("path", d=f"M{x_axis.start_px} {bottom}H{x_axis.end_px}", class_="axis"))
    for value in x_axis.ticks():
        x = float(x_axis.px(value))
        elements.append(tag("path", d=f"M{x:.1f} {bottom}v4", class_="axis"))
        elements.append(tag("text", curves.tick_label(value), x=f"{x:.1f}", y=bottom + 16, class_="tick middle"))
    elements.append(
        tag("text", chart.x_label, x=(x_axis.start_px + x_axis.end_px) / 2, y=bottom + 33, class_="tick middle")
    )
    if is_log:
        elements.append(tag("text", "log scale", x=x_axis.start_px + 4, y=TOP - 4, class_="tick"))
    return elements


def _line(line: Line, chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Html:
    thin = curves.envelope(line.x / chart.x_scale, line.y, is_log=x_axis.is_log)
    middle = _middle(thin, line, chart)
    xs, low, high = x_axis.px(thin.x), y_axis.px(_below(thin.low, y_axis)), y_axis.px(thin.high)
    high = np.where(np.isfinite(low), np.fmax(high, y_axis.end_px), np.nan)  # pixel coordinates grow downwards
    ys = y_axis.px(_below(middle, y_axis))
    parts: list[Child] = []
    if line.is_exact and curves.is_falling_anywhere(line.y):
        points = "".join(_dots(xs, of_group) for of_group in (low, high, ys))
        parts.append(tag("path", d=points, class_="dots" if len(xs) <= FEW else "dots many"))
    else:
        if thin.is_thinned:
            parts.append(tag("path", d=_band(xs, low, high), class_="band"))
        elif chart.noisy and len(xs) > FEW and not line.is_exact:
            parts.append(tag("path", d=_path(xs, low), class_="raw"))
        parts.append(tag("path", d=_steps(xs, ys) if line.is_exact else _path(xs, ys), class_="line"))
        if len(xs) <= FEW:
            parts.append(tag("path", d=_dots(xs, low), class_="dots"))
    broken = sorted({round(float(x)) for x in x_axis.px(line.x[~np.isfinite(line.y)] / chart.x_scale)})
    bottom = y_axis.start_px - 4
    crosses = "".join(f"M{x - 3} {bottom - 3:g}l6 6m0-6l-6 6" for x in broken)
    if crosses:
        parts.append(tag("path", tag("title", "not a finite value"), d=crosses, class_="cross"))
    return tag("g", parts, class_=line.colour)


def _middle(thin: curves.Envelope, line: Line, chart: Chart) -> Floats:
    """Return the values that a line goes through."""
    if line.is_exact:
        return thin.last
    return curves.running_mean(thin.mean) if chart.noisy else thin.mean


def _below(values: Floats, y_axis: _Axis) -> Floats:
    """Return the values, with NaN for those above the chart."""
    return np.where(values <= y_axis.high, values, np.nan)


def _runs(ys: Floats) -> list[tuple[int, int]]:
    """Return the start and the end of each stretch of finite values."""
    edges = np.flatnonzero(np.diff(np.isfinite(ys).astype(np.int8), prepend=0, append=0))
    return [(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def _path(xs: Floats, ys: Floats) -> str:
    return "".join("M" + _points(xs[i:j], ys[i:j]) + ("h0" if j == i + 1 else "") for i, j in _runs(ys))


def _steps(xs: Floats, ys: Floats) -> str:
    """Return a path that keeps each value until the next one."""
    return "".join(
        f"M{xs[i]:.1f} {ys[i]:.1f}"
        + ("".join(f"H{x:.1f}V{y:.1f}" for x, y in zip(xs[i + 1 : j], ys[i + 1 : j], strict=True)) or "h0")
        for i, j in _runs(ys)
    )


def _band(xs: Floats, low: Floats, high: Floats) -> str:
    return "".join(f"M{_points(xs[i:j], high[i:j])}L{_points(xs[i:j][::-1], low[i:j][::-1])}Z" for i, j in _runs(low))


def _dots(xs: Floats, ys: Floats) -> str:
    return "".join(f"M{x:.1f} {y:.1f}h0" for x, y in zip(xs, ys, strict=True) if math.isfinite(y))


def _points(xs: Floats, ys: Floats) -> str:
    return " ".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))


def _mark(mark: Mark, chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Html:
    x, bottom, top = float(x_axis.px(mark.x / chart.x_scale)), y_axis.start_px, y_axis.end_px
    shape = {
        "skipped": f"M{x:.1f} {bottom}v-9",
        "rollback": f"M{x:.1f} {top}V{bottom}",
        "resumed": f"M{x:.1f} {top}V{bottom}",
    }[mark.kind]
    head = "" if mark.kind == "skipped" else f"M{x - 5:.1f} {top - 7}h10l-5 7Z"
    return tag(
        "g",
        tag("title", mark.text),
        tag("path", d=shape),
        tag("path", d=head, class_="head") if head else (),
        class_=f"mark {mark.kind} {mark.colour}".strip(),
    )


def _end_labels(chart: Chart, y_axis: _Axis, *, x_px: float) -> Child:
    """Return each line's name and last value at its end, moved apart where they would overlap."""
    ends = []
    for line in chart.lines:
        values = line.y[np.isfinite(line.y)]
        if not len(values):
            continue
        middle = _middle(curves.envelope(line.x, line.y, is_log=chart.x_least is not None), line, chart)
        end = float(middle[np.isfinite(middle)][-1])
        ends.append((float(y_axis.px(end)), line, float(values[-1]) if not chart.noisy else end))
    ends.sort(key=lambda entry: entry[0])
    ys = _apart([y for y, _, _ in ends], low=y_axis.end_px, high=y_axis.start_px)
    return [
        tag(
            "text",
            tag("tspan", f"{line.label} " if line.label else "", class_="name"),
            tag("tspan", curves.whole(value) if line.is_exact else curves.number(value)),
            x=x_px, y=f"{y + 4:.1f}", class_=f"label {line.colour}",
        )
        for y, (_, line, value) in zip(ys, ends, strict=True)
    ]  # fmt: skip


def _apart(ys: list[float], *, low: float, high: float) -> list[float]:
    """Return the ascending positions at least one label apart: moved down where necessary, then up from `high`."""
    placed: list[float] = []
    for y in ys:
        placed.append(max(y, low, placed[-1] + LABEL_HEIGHT if placed else low))
    limit = max(high, low + LABEL_HEIGHT * (len(placed) - 1))
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], limit)
        limit = placed[i] - LABEL_HEIGHT
    return placed
