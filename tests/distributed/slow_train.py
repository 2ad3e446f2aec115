"""Trains as pipeline.train does, with a part of it slowed, as the variables say; run by the tests in its place.

SLOW_READS_S: seconds that each window takes to be read.  SLOW_HEAD_2_S: seconds that the second head's layer takes.
SLOW_RANK: the rank that is slowed; without it, all are.
"""

import os
import time
from typing import Any

from common.command_line import exit_on_user_error
from pipeline import model, shards, train

Method = Any


def slowed(function: Method, seconds: float) -> Method:
    """Return `function`, which sleeps before each call if this rank is to."""
    if os.environ.get("SLOW_RANK", os.environ["RANK"]) != os.environ["RANK"]:
        return function

    def slow(*arguments: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return function(*arguments, **options)

    return slow


class SlowHeads(model.Heads):
    """Heads of which the second is slow."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        layer = self.layers[1]
        layer.forward = slowed(layer.forward, float(os.environ["SLOW_HEAD_2_S"]))  # type: ignore[method-assign]


if __name__ == "__main__":
    if "SLOW_READS_S" in os.environ:
        reads = slowed(shards.ShardFolder.get_item, float(os.environ["SLOW_READS_S"]))
        shards.ShardFolder.get_item = reads  # type: ignore[method-assign]
    if "SLOW_HEAD_2_S" in os.environ:
        model.Heads = SlowHeads  # type: ignore[misc]
    exit_on_user_error(train.main, program=train.PROGRAM)
