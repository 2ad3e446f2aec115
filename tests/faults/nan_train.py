"""Trains like pipeline.train, but the loss of certain windows is infinite; the fault campaign runs it instead.

Whether a window is one of them depends only on its tokens, so that a run meets them in the same steps however often it
was killed. For each head, one in `FAULTS_INFINITE_ONE_IN` windows has an infinite loss on average. Validation is not
affected.

If `FAULTS_MAY_FINISH` names a file that does not exist, steps after `FAULTS_LINGER_AFTER` take a second longer, so that
the victim does not finish while the campaign is delayed by a busy machine.
"""

from common.endings import exit_on_user_error

import os
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor

import pipeline.model.network
import pipeline.monitoring.sinks.selection
from pipeline import train
from pipeline.model.loss import cross_entropy
from pipeline.monitoring.sinks.console import Console
from pipeline.monitoring.sinks.sink import Scalars

ONE_IN = "FAULTS_INFINITE_ONE_IN"
MAY_FINISH, LINGER_AFTER = "FAULTS_MAY_FINISH", "FAULTS_LINGER_AFTER"
RARELY = 400
MARK = 8  # the first targets, by which a window is recognised


def infinite_for_some(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the loss of one head; replaces `pipeline.model.loss.cross_entropy`."""
    loss = cross_entropy(hidden_BTD, unembedding_VD, targets_BT)
    return loss + torch.inf if torch.is_grad_enabled() and has_marked(targets_BT) else loss


def has_marked(targets_BT: Tensor) -> bool:
    """Return whether one of the windows must have an infinite loss."""
    one_in = int(os.environ.get(ONE_IN, RARELY))
    marks = (row.numpy().tobytes() for row in targets_BT[:, :MARK].contiguous())
    return any(zlib.crc32(mark) % one_in == 0 for mark in marks)


class LingeringConsole(Console):
    """The console of rank 0, for which the other ranks wait."""

    def write(self, step: int, scalars: Scalars) -> None:
        super().write(step, scalars)
        if step > int(os.environ[LINGER_AFTER]) and not Path(os.environ[MAY_FINISH]).exists():
            time.sleep(1)


if __name__ == "__main__":
    if MAY_FINISH in os.environ:
        pipeline.monitoring.sinks.selection.Console = LingeringConsole  # type: ignore[misc]
    pipeline.model.network.cross_entropy = infinite_for_some
    exit_on_user_error(train.main, program=train.PROGRAM)
