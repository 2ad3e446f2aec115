"""Join and leave the process group, and import deepspeed late."""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from common.command_line import UserError, one_line
from common.wording import counted
from pipeline.runtime.world import World


@contextmanager
def process_group(world: World, *, timeout_s: float = 1800) -> Iterator[torch.device]:
    """Join the process group, yield this rank's device (its GPU, or the CPU with gloo), and leave the group.

    If a rank does not join a collective within `timeout_s`, the collective raises an error on the other ranks.

    Exiting without leaving the group can crash a gloo thread: if it frees its last tensor while the interpreter shuts
    down, it aborts the process ("terminate called without an active exception"), and the exit code is lost. The group
    is left at the normal end and after a `UserError`, which all ranks reach together. After any other error the other
    ranks may still wait in a collective, and leaving would wait with them.

    Raises:
        UserError: the launcher's rendezvous port is taken, for instance by another run on this machine.
    """
    deepspeed = import_deepspeed()
    accelerator = deepspeed.accelerator.get_accelerator()
    if accelerator.is_available() and accelerator.device_name() != "cpu":
        if world.local_world_size > accelerator.device_count():
            raise UserError(
                f"{world.local_world_size} ranks share this node, which has "
                f"{counted(accelerator.device_count(), 'device')} that they may use; "
                "start one rank for each, or set DS_ACCELERATOR=cpu"
            )
        accelerator.set_device(world.local_rank)
        device = torch.device(accelerator.device_name(world.local_rank))
    else:
        device = torch.device("cpu")
        if "OMP_NUM_THREADS" not in os.environ:  # torch would give each rank as many threads as there are cores
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_world_size))
    try:
        deepspeed.init_distributed(
            dist_backend="gloo" if device.type == "cpu" else None, timeout=timedelta(seconds=timeout_s), verbose=False
        )
    except torch.distributed.DistNetworkError as error:
        port = os.environ.get("MASTER_PORT")
        raise UserError(
            f"the ranks cannot meet on port {port}: {one_line(error)[:160]}; if another run uses it,"
            " choose another port with the launcher's --master_port"
        ) from error
    try:
        yield device
    except UserError:
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def import_deepspeed() -> Any:
    """Return the module deepspeed, whose import takes seconds, so that it happens only when needed."""
    import deepspeed
    import deepspeed.accelerator
    import deepspeed.ops

    # Let DeepSpeed build no native op. Joining gloo's group would compile one that only DeepSpeed's inference uses. A
    # start that is killed during the compilation leaves a lock file, for which every later start waits.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed 0.19.8 calls collectives by names that torch 2.13 deprecates, once per rank and run.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    return deepspeed
