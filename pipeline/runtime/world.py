"""This process's place among the ranks, and which start of which job it belongs to, from the launcher's variables."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a run. job: which job it is of.  restart: how often the scheduler had started that job before."""

    job: str
    restart: int = 0

    def is_later_than(self, other: Launch) -> bool:
        """Whether both are starts of one job, and this one came later."""
        return self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        return f"{self.job}, start {self.restart + 1}" if self.restart else self.job


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
