"""Joining and leaving the process group, and the late import of deepspeed."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from common.command_line import UserError, one_line
from pipeline.runtime.world import World


@contextmanager
def process_group(world: World, *, timeout_s: float = 1800) -> Iterator[torch.device]:
    """Join the process group, yield this rank's device (its GPU, or the CPU with gloo), and leave the group.

    A collective that a rank is missing from for `timeout_s` is an error of the others.

    Who exits without leaving races gloo's threads: one that frees its last tensor while the interpreter shuts down
    aborts the process ("terminate called without an active exception"), and the exit code is lost. All ranks end or
    meet a user's mistake together; on any other error the rest may wait in a collective, and leaving would join them.

    Raises:
        UserError: the launcher's rendezvous port is taken, for instance by another run on this machine.
    """
    deepspeed = import_deepspeed()
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.is_available() and accelerator.device_name() != "cpu":
        accelerator.set_device(world.local_rank)
        device = torch.device(accelerator.device_name(world.local_rank))
    else:
        device = torch.device("cpu")
    try:
        deepspeed.init_distributed(
            dist_backend="gloo" if device.type == "cpu" else None, timeout=timedelta(seconds=timeout_s), verbose=False
        )
    except torch.distributed.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        raise UserError(
            f"the ranks cannot meet on port {port} ({one_line(error)[:160]}); if another run uses it,"
            " give the launcher another --master_port"
        ) from error
    try:
        yield device
    except UserError:
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def import_deepspeed() -> Any:
    """Import deepspeed, which takes seconds, when it is first needed."""
    import deepspeed
    import deepspeed.accelerator
    import deepspeed.ops

    # The native ops that DeepSpeed may build: none. Joining gloo's group would compile one that only its inference
    # uses, under a lock file which a start that is killed meanwhile leaves, and every later start waits for.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 deprecates, once per rank and run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
