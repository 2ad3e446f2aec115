"""Trains as pipeline.train does, with parts of it slowed as variables say; run by the tests in its place.

SLOW_READS_S: seconds more that rank 1 takes to read each window.
SLOW_HEAD_2_S: seconds more that the second head's layer takes, on every rank.

The clock that ranks compare their steps by counts each of these seconds `SHOWN` times, so that nothing else which a
busy machine does to a rank is worth a word beside them.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from common.command_line import exit_on_user_error
from pipeline import train
from pipeline.data import batches, dataset
from pipeline.model import network
from pipeline.monitoring import step_times

SHOWN = 100


class Clock:
    """Stands for `time`."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def perf_counter(self) -> float:
        """Seconds, of which those that a slowed function has slept count more often."""
        return time.perf_counter() + self.ahead_s


CLOCK = Clock()


def slowed(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """Return `function`, which sleeps before each call."""

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        CLOCK.ahead_s += (SHOWN - 1) * seconds
        return function(*arguments, **options)

    return slow


class SlowHeads(network.Heads):
    """Heads of which the second is slow."""

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
