"""Trains as pipeline.train does, but the loss of certain windows is infinite; run by the fault campaign in its place.

Which ones depends on their tokens alone, so that a run meets them in the same steps however often it was killed. Of
`FAULTS_INFINITE_ONE_IN` windows, in the mean, one is so in the loss of each head. Validation is left alone.
"""

import os
import zlib

import torch
from torch import Tensor

import pipeline.model
from common.command_line import exit_on_user_error
from pipeline import train
from pipeline.loss import cross_entropy

ONE_IN = "FAULTS_INFINITE_ONE_IN"
RARELY = 400
MARK = 8  # targets of a window by which it is known


def infinite_for_some(hidden_BTD: Tensor, unembedding_VD: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of one head, in the place of `pipeline.loss.cross_entropy`."""
    loss = cross_entropy(hidden_BTD, unembedding_VD, targets_BT)
    return loss + torch.inf if torch.is_grad_enabled() and has_marked(targets_BT) else loss


def has_marked(targets_BT: Tensor) -> bool:
    """Whether one of the windows is to have an infinite loss."""
    one_in = int(os.environ.get(ONE_IN, RARELY))
    marks = (row.numpy().tobytes() for row in targets_BT[:, :MARK].contiguous())
    return any(zlib.crc32(mark) % one_in == 0 for mark in marks)


if __name__ == "__main__":
    pipeline.model.cross_entropy = infinite_for_some
    exit_on_user_error(train.main, program=train.PROGRAM)
