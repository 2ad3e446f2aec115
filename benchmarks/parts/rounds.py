"""Rounds in which all cases take turns, and medians with quartiles.

The load of a machine changes over minutes. So cases are compared by their ratios within a round, and every other round
goes backwards, so that no case always runs after the same neighbour.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median and quartiles of repeated measurements."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        median, lower, upper = (f"{x:,.0f}" if x >= 100 else f"{x:.3g}" for x in (self.median, self.lower, self.upper))
        return f"{median} ({lower} to {upper})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and quartiles of the values."""
    lower, median, upper = np.percentile(values, [25, 50, 75]).tolist()
    return Spread(median=median, lower=lower, upper=upper)


def ratio(values: Sequence[float], base: Sequence[float]) -> Spread:
    """Return the spread of each round's value divided by the value of `base` in the same round."""
    return spread([value / of_base for value, of_base in zip(values, base, strict=True)])


def in_turns(
    cases: Mapping[str, Callable[[], float]], *, warm_up: int, repeats: int, label: str = "rounds"
) -> dict[str, list[float]]:
    """Call every case once in each of `warm_up` + `repeats` rounds; return the results of the later rounds, by name."""
    found: dict[str, list[float]] = {name: [] for name in cases}
    rounds = range(warm_up + repeats)
    for index in tqdm(rounds, desc=label, leave=False, disable=os.environ.get("RANK", "0") != "0" or None):
        for name in list(cases)[:: 1 if index % 2 else -1]:
            measured = cases[name]()
            if index >= warm_up:
                found[name].append(measured)
    return found
