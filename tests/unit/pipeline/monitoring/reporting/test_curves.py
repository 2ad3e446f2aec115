"""Curves before they are drawn, values that a chart leaves out, and numbers as text."""

import re
from itertools import pairwise

import numpy as np
import pytest

from pipeline.monitoring.reporting import curves
from pipeline.monitoring.reporting.chart import Chart, Line, svg, value_range


def line(x: np.ndarray, y: np.ndarray) -> Line:
    return Line(label="", colour="h1", x=x, y=y)


def test_an_envelope_is_the_range_of_each_group_of_neighbours() -> None:
    generator = np.random.default_rng(1)
    y = generator.normal(size=1003)
    y[100:140] = np.nan
    thin = curves.envelope(np.arange(1003.0), y, most=50)
    edges = [int(edge) for edge in np.linspace(0, 1003, 51)]
    for i, (start, end) in enumerate(pairwise(edges)):
        group = [value for value in y[start:end] if np.isfinite(value)]
        if not group:
            assert np.isnan([thin.low[i], thin.high[i], thin.mean[i]]).all()
            continue
        assert (thin.low[i], thin.high[i]) == (min(group), max(group))
        assert thin.mean[i] == pytest.approx(sum(group) / len(group))
    assert np.isnan(thin.mean).any()


@pytest.mark.parametrize("n", [0, 1, 2, 39, 40, 200, 301])
def test_curves_of_any_length(n: int) -> None:
    y = np.arange(float(n))
    thin = curves.envelope(y, y)
    assert len(thin.x) == min(n, curves.MOST)
    smooth = curves.running_mean(thin.mean)
    assert len(smooth) == len(thin.mean)
    assert smooth[3:-8] == pytest.approx(thin.mean[3:-8], abs=5)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.13, 0.42, [0.2, 0.3, 0.4]), (-5, 5, [-4, -2, 0, 2, 4]), (0, 1e9, None)],
)
def test_ticks_are_round(low: float, high: float, expected: list[float] | None) -> None:
    ticks = curves.linear_ticks(low, high)
    assert 3 <= len(ticks) <= 8
    assert expected is None or ticks == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (3.14159, "3.14"), (0.0406, "0.0406"), (1234567, "1,234,567"), (2.5e-7, "2.5e-7"), (None, "–"),  # noqa: RUF001
     (999.7, "1,000"), (-2.5, "-2.50"), (1e-5, "1e-5")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert curves.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.6, "1 min"), (3725, "1 h 2 min"), (90061, "1 d 1 h"), (42, "42 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert curves.duration(seconds) == text


def test_a_range_may_leave_out_the_beginning() -> None:
    x, falling = np.arange(100.0), np.concatenate([[90.0, np.nan, 50.0], np.linspace(5, 4, 97)])
    lines = [line(x, falling), line(x[:1], np.array([1000.0]))]
    assert value_range(lines) == (4, 1000)
    assert value_range(lines[:1], without_first=0.021) == (4, 5)
    assert value_range([line(x[:1], np.array([np.nan]))]) is None


def test_each_line_leaves_out_the_beginning_of_its_own_length() -> None:
    """A short run beside a long one lies in what would be the beginning of the long one."""
    long, short = np.arange(1.0, 2001), np.arange(1.0, 21)
    lines = [line(long, np.full(2000, 2.0)), line(short, np.linspace(9, 6, 20))]
    assert value_range(lines, without_first=0.02) == (2.0, 9.0)


def test_groups_on_a_logarithmic_axis_are_of_equal_width() -> None:
    x = np.arange(1.0, 100_001)
    thin = curves.envelope(x, x, most=100, is_log=True)
    assert thin.x[0] == thin.last[0] == 1
    assert len(thin.x) <= 100
    assert (thin.last[-1], thin.high[-1]) == (100_000, 100_000)
    widths = np.diff(np.log(thin.x))[np.flatnonzero(thin.x > 200)[0] :]  # at the beginning a group is a single point
    assert widths.max() < 1.1 * np.log(100_000) / 100


def test_groups_keep_their_last_finite_value() -> None:
    y = np.array([3.0, np.nan, np.nan, np.nan, 5.0, 4.0])
    assert curves.envelope(np.arange(6.0), y, most=3).last == pytest.approx([3, np.nan, 4], nan_ok=True)


@pytest.mark.parametrize("n", [30, 5000])  # single points, and groups of points
def test_values_above_a_chart_are_not_drawn(n: int) -> None:
    x = np.arange(float(n))
    y = np.where(x < n / 10 + 5, 100.0, 2.0 + np.sin(x))  # the limit lies inside a group
    drawn = svg(Chart(title="", unit="", lines=[line(x, y)], x_most=n, y_range=(1, 3)), width=600, height=270)
    paths = re.findall(r'<path d="([^"]*)" class="(?:line|band|raw|dots)"', str(drawn))
    points = [(float(px), float(py)) for path in paths for px, py in re.findall(r"(-?[\d.]+)[ ,](-?[\d.]+)", path)]
    assert len(points) > 20
    assert all(py >= 15 for _, py in points)  # the chart's top is 16 pixels below the top of the picture
    assert min(px for px, _ in points) > 80  # the first tenth, from 52 to 97, has ended or nearly so
