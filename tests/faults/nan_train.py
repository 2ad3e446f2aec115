"""Trains as pipeline.train does, but the loss of certain windows is infinite; run by the fault campaign in its place.

Which ones depends on their tokens alone, so that a run meets them in the same steps however often it was killed. Of
`FAULTS_INFINITE_ONE_IN` windows, in the mean, one is so in the loss of each head. Validation is left alone.

Where `FAULTS_MAY_FINISH` names a file that is not there, steps beyond `FAULTS_LINGER_AFTER` take a second more, so that
a campaign that is kept waiting by a busy machine does not find its victim done.
"""

import os
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

import pipeline.model.network
import pipeline.monitoring.sinks
from common.command_line import exit_on_user_error
from pipeline import train
from pipeline.model.loss import cross_entropy
from pipeline.monitoring.sinks import Console, Scalars

ONE_IN = "FAULTS_INFINITE_ONE_IN"
MAY_FINISH, LINGER_AFTER = "FAULTS_MAY_FINISH", "FAULTS_LINGER_AFTER"
RARELY = 400
MARK = 8  # targets of a window by which it is known


def infinite_for_some(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of one head, in the place of `pipeline.model.loss.cross_entropy`."""
    loss = cross_entropy(hidden_BTD, unembedding_VD, targets_BT)
    return loss + torch.inf if torch.is_grad_enabled() and has_marked(targets_BT) else loss


def has_marked(targets_BT: Tensor) -> bool:
    """Whether one of the windows is to have an infinite loss."""
    one_in = int(os.environ.get(ONE_IN, RARELY))
    marks = (row.numpy().tobytes() for row in targets_BT[:, :MARK].contiguous())
    return any(zlib.crc32(mark) % one_in == 0 for mark in marks)


class LingeringConsole(Console):
    """Rank 0's, for which the others wait."""

    def write(self, step: int, scalars: Scalars) -> None:
        super().write(step, scalars)
        if step > int(os.environ[LINGER_AFTER]) and not Path(os.environ[MAY_FINISH]).exists():
            time.sleep(1)


if __name__ == "__main__":
    if MAY_FINISH in os.environ:
        pipeline.monitoring.sinks.Console = LingeringConsole  # type: ignore[misc]
    pipeline.model.network.cross_entropy = infinite_for_some
    exit_on_user_error(train.main, program=train.PROGRAM)
