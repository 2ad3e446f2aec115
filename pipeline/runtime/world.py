"""Rank and world from whichever launcher started us, means over ranks, and rank-0 logging."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError
from pipeline.runtime.lease import Launch

if TYPE_CHECKING:  # torch takes seconds to import, and the launcher's variables do not need it
    import torch.distributed as dist
    from torch import Tensor

logger = logging.getLogger("pipeline")
BY_HAND = Launch(job="a start by hand")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place: `rank` of `world_size`, and `local_rank` of `local_world_size` on its node.

    has_launcher: whether a launcher started it, and watches over it.  launch: which start of which job this is.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    has_launcher: bool = False
    launch: Launch = BY_HAND

    @property
    def is_main(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0


def world_from_environment() -> World:
    """Read the launcher's variables, and complete them for the libraries that read them too.

    Slurm's srun has names of its own; they count for a step's tasks alone, since a job's batch script has some of them
    too, and then starts ranks by another launcher or one by itself. The deepspeed launcher sets LOCAL_SIZE where
    torchrun sets LOCAL_WORLD_SIZE; mosaicml-streaming knows only the latter, and without it every rank believes that
    it owns the node (mosaicml/streaming #717). Without any launcher this is a world of one.
    """
    env = os.environ
    launch = Launch(job=f"process {os.getpid()} on {socket.gethostname()}")
    if "RANK" not in env and "SLURM_STEP_ID" in env:
        env.update(RANK=env["SLURM_PROCID"], LOCAL_RANK=env["SLURM_LOCALID"], WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"])
        env["LOCAL_WORLD_SIZE"] = str(tasks_on_node(env["SLURM_STEP_TASKS_PER_NODE"], node=int(env["SLURM_NODEID"])))
        env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
        env.setdefault("MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 10_000))  # jobs may share a node
        launch = Launch(job=f"Slurm job {env['SLURM_JOB_ID']}", restart=int(env.get("SLURM_RESTART_COUNT", "0")))
    has_launcher = "LOCAL_RANK" in env
    env.setdefault("RANK", "0")
    env.setdefault("LOCAL_RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", "1"))
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "0" if env["WORLD_SIZE"] == "1" else "29500")  # 0: any free port
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
    rank, local_rank, world_size, local_world_size = (int(env[name]) for name in names)
    return World(
        rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size,
        has_launcher=has_launcher, launch=launch,
    )  # fmt: skip


def tasks_on_node(tasks_per_node: str, *, node: int) -> int:
    """Return how many tasks run on the node of that index, by Slurm's count of all nodes: "2(x3),1" is 2, 2, 2, 1."""
    counts = [
        int(count)
        for entry in tasks_per_node.split(",")
        for count, _, times in [entry.rstrip(")").partition("(x")]
        for _ in range(int(times or 1))
    ]
    return counts[node]


def first_host(hosts: str) -> str:
    """Return the first of the hosts in Slurm's notation, where rank 0 is: "gpu[01-03,7],big" begins with gpu01."""
    found = re.match(r"([^,\[]*)(?:\[([^],-]+)[^]]*\])?([^,\[]*)", hosts)
    assert found is not None  # it matches anything
    return "".join(part or "" for part in found.groups())


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of `values` over all ranks, in fp32; every rank must call it."""
    import torch.distributed as dist

    mean = values.detach().float().clone()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def agree(losses_N: Tensor, *counts: float) -> tuple[Tensor, list[float]]:
    """Return the mean losses (N,) over all ranks, fp32, and the sum of each count over all ranks; in one collective.

    Every rank must call it, and all get the same. A flag is a count: it is set on some rank if its sum is above 0.
    """
    import torch
    import torch.distributed as dist

    sums = torch.cat([losses_N.detach().float(), torch.tensor(counts, dtype=torch.float32, device=losses_N.device)])
    dist.all_reduce(sums)
    n = len(losses_N)
    return sums[:n] / dist.get_world_size(), sums[n:].tolist()


def from_every_rank(value: Any, *, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Return the ranks' values, in order, on every rank; every rank must call it."""
    import torch.distributed as dist

    values = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group=group)
    return values


def from_main(value: Any) -> Any:
    """Return rank 0's `value` on every rank; every rank must call it."""
    import torch.distributed as dist

    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def by_main(action: Callable[[], None], *, world: World) -> None:
    """Let rank 0 do something with files; every rank must call it, and a mistake of rank 0's is every rank's.

    Raises:
        UserError: `action` raised it, or a file could not be written.
    """
    problem = None
    if world.is_main:
        try:
            action()
        except UserError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{error.filename} cannot be written ({error.strerror})"
    problem = from_main(problem)
    if problem is not None:
        raise UserError(problem)


def configure_logging(world: World, *, handlers: Iterable[logging.Handler]) -> None:
    """Let this rank log to `handlers`: rank 0 everything, the others only warnings."""
    logger.handlers.clear()
    logger.propagate = False
    logger.setLevel(logging.INFO if world.is_main else logging.WARNING)
    for handler in handlers:
        logger.addHandler(handler)


class LogFile(logging.FileHandler):
    """Appends to a file what its disk takes."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Leave out what a full disk refuses."""


def log_file_handler(path: Path) -> logging.Handler:
    """Return a handler that appends dated lines to `path`."""
    handler = LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    return handler
