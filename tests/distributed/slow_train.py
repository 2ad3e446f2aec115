"""Trains like pipeline.train, but with slowed parts; the tests run it instead. Environment variables:

SLOW_READS_S: additional seconds that rank 1 takes to read each window.
SLOW_HEAD_2_S: additional seconds that the second head's layer takes, on every rank.

The clock by which ranks compare their steps counts each of these seconds `SHOWN` times, so that other delays on a busy
machine are negligible.
"""

from common.endings import exit_on_user_error

import os
import time
from collections.abc import Callable
from typing import Any

from pipeline import train
from pipeline.data import batches, dataset
from pipeline.model import network
from pipeline.monitoring import step_times

SHOWN = 100


class Clock:
    """Replaces the module `time`."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def perf_counter(self) -> float:
        """Return seconds, in which the sleep of slowed functions counts `SHOWN` times."""
        return time.perf_counter() + self.ahead_s


CLOCK = Clock()


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """Return `function` with a sleep before each call."""

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        CLOCK.ahead_s += (SHOWN - 1) * seconds
        return function(*arguments, **options)

    return slow


class SlowHeads(network.Heads):
    """Heads with a slow second head."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        layer = self.layers[1]
        layer.forward = slowed(layer.forward, float(os.environ["SLOW_HEAD_2_S"]))


if __name__ == "__main__":
    batches.time = step_times.time = CLOCK  # type: ignore[assignment]
    if os.environ["RANK"] == "1":
        slow_reads = slowed(dataset.ShardFolder.get_item, float(os.environ["SLOW_READS_S"]))
        dataset.ShardFolder.get_item = slow_reads  # type: ignore[method-assign]
    network.Heads = SlowHeads  # type: ignore[misc]
    exit_on_user_error(train.main, program=train.PROGRAM)
