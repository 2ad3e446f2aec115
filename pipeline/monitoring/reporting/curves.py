"""Prepares curves for drawing: thinned points, running means, axis ticks, and numbers as text.

A run logs up to 100,000 points per tag, but a plot has only about 600 columns. `envelope` joins neighbouring points
into at most `MOST` groups and keeps the lowest, highest and mean value of each, so that no jump is lost.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
MOST = 300  # groups of points
SMOOTHED = 25  # the running mean's window is 1/25 of the curve


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """A thinned curve: for each group of neighbours, the middle of x, and the lowest, highest, mean and last finite y.

    y is NaN for a group without finite values. In a curve of at most `MOST` points, each point is its own group.
    """

    x: Floats
    low: Floats
    high: Floats
    mean: Floats
    last: Floats

    @property
    def is_thinned(self) -> bool:
        """True if groups have more than one point."""
        return not np.array_equal(self.low, self.high, equal_nan=True)


def envelope(x: Floats, y: Floats, *, most: int = MOST, is_log: bool = False) -> Envelope:
    """Return the curve through (x, y), with ascending x, as at most `most` groups of neighbours.

    Args:
        x, y: the curve.
        most: number of groups.
        is_log: group what lies together on a logarithmic x axis; the groups at its beginning then have fewer points.
    """
    if not len(x):
        return Envelope(x=x, low=y, high=y, mean=y, last=y)
    starts = np.unique(np.linspace(0, len(x), min(most, len(x)), endpoint=False).astype(np.int64))
    if is_log and len(x) > most and x[-1] > 0:
        edges = np.geomspace(x[x > 0][0], x[-1], most, endpoint=False)
        starts = np.unique(np.append(0, np.searchsorted(x, edges)))
    ends = np.append(starts[1:], len(x)) - 1
    is_finite = np.isfinite(y)
    n_finite = np.add.reduceat(is_finite.astype(np.float64), starts)
    sums = np.add.reduceat(np.where(is_finite, y, 0.0), starts)
    mean = np.full(len(starts), np.nan)
    np.divide(sums, n_finite, out=mean, where=n_finite > 0)
    last = np.maximum.reduceat(np.where(is_finite, np.arange(len(y)), -1), starts)
    return Envelope(
        x=(x[starts] + x[ends]) / 2,
        low=np.fmin.reduceat(y, starts),
        high=np.fmax.reduceat(y, starts),
        mean=mean,
        last=np.where(last >= starts, y[last], np.nan),
    )


def running_mean(y: Floats) -> Floats:
    """Return the centred running mean over 1/`SMOOTHED` of the curve; NaN stays NaN and does not enter other means."""
    window = min(len(y), 2 * (len(y) // (2 * SMOOTHED)) + 1)
    if window < 3:
        return y
    is_finite = np.isfinite(y)
    ones = np.ones(window)
    sums = np.convolve(np.where(is_finite, y, 0.0), ones, mode="same")
    counts = np.convolve(is_finite.astype(np.float64), ones, mode="same")
    mean = np.full(len(y), np.nan)
    np.divide(sums, counts, out=mean, where=is_finite)
    return mean


def is_falling_anywhere(y: Floats) -> bool:
    """Return whether a finite value is below an earlier one, as no count is."""
    finite = y[np.isfinite(y)]
    return bool((finite[1:] < finite[:-1]).any())


def linear_ticks(low: float, high: float, *, about: int = 5, least: float = 0.0) -> list[float]:
    """Return about `about` ticks within [low, high], at least `least` apart: multiples of 1, 2 or 5 x a power of 10."""
    rough = max(least, (high - low) / about)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten within [low, high]: thinned if many, with 2 and 5 times them if few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    decades = [10.0**n for n in powers if low <= 10.0**n <= high]
    if len(decades) < 3:
        return [factor * 10.0**n for n in powers for factor in (1, 2, 5) if low <= factor * 10.0**n <= high]
    return decades[:: -(-len(decades) // 6)]


def whole(value: float) -> str:
    """Return a number that counts or names something."""
    return f"{value:,.0f}"


def number(value: float | None, *, digits: int = 3) -> str:
    """Return a number with this many significant digits and thousands separators; a dash for None or NaN."""
    if value is None or math.isnan(value):
        return "–"  # noqa: RUF001
    size = abs(value)
    if value == 0 or 10 ** (digits - 1) <= size < 1e15:
        return f"{value:,.0f}"
    if 1e-3 <= size < 1e15:
        return f"{value:.{digits - 1 - math.floor(math.log10(size))}f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def tick_label(value: float) -> str:
    """Return a tick's number in its shortest form."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            return f"{value / (1e3 if name == 'k' else unit):.6g}{name}"
    if value == 0 or size >= 1e-3:
        return f"{value:,.6g}"
    mantissa, _, exponent = f"{value:.5e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def token_unit(most: float) -> tuple[float, str]:
    """Return the largest unit for a number of tokens, and its name in the plural."""
    units = ((1e12, "trillions"), (1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
    return next(((unit, name) for unit, name in units if most >= unit), (1.0, ""))


def tokens(value: float | None) -> str:
    """Return a number of tokens with its unit, such as "1.23 billion"; a dash for None."""
    if value is None:
        return number(None)
    unit, name = token_unit(value)
    return f"{number(value / unit)} {name.removesuffix('s')}".strip()


def duration(seconds: float) -> str:
    """Return a duration in its two largest units, such as "1 h 2 min"."""
    units = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
    seconds = round(seconds)
    for (size, name), (smaller, its_name) in zip(units, [*units[1:], (1, "")], strict=True):
        if seconds >= size:
            rest = seconds % size // smaller if its_name else 0
            return f"{seconds // size} {name}" + (f" {rest} {its_name}" if rest else "")
    return "0 s"
