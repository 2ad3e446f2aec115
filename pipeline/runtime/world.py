"""This process's place among the ranks, and the job that it belongs to, read from the launcher's variables."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from common.command_line import UserError, raise_if_any
from common.wording import shortened

_MOST_CHARACTERS = 100  # of a job's name in messages; lease.json may hold any


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One start of a job."""

    job: str
    """Name of the job."""
    restart: int = 0
    """How often the scheduler had started this job before."""

    def is_later_than(self, other: Launch) -> bool:
        """Return True if both are starts of the same job, and this one came later."""
        return self.job == other.job and self.restart > other.restart

    def __str__(self) -> str:
        job = shortened(self.job, most=_MOST_CHARACTERS)
        return f"{job}, start {self.restart + 1}" if self.restart else job


BY_HAND = Launch(job="a start by hand")


@dataclass(frozen=True, kw_only=True)
class World:
    """This process's place: `rank` of `world_size`, and `local_rank` of `local_world_size` on its node."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    has_launcher: bool = False
    """True if a launcher started this process and watches over it."""
    launch: Launch = BY_HAND

    @property
    def is_main(self) -> bool:
        """True on rank 0, which logs and writes the files of the run."""
        return self.rank == 0


# What the launchers of MPI call rank, local rank, number of ranks, and number on this node.
_OF_MPI = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),  # MPICH and Intel MPI
)
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")
_MOST_RANKS = 1 << 20


def world_from_environment() -> World:
    """Return this process's place, and set the launcher's variables that other libraries read but the launcher did not.

    The deepspeed launcher sets LOCAL_SIZE, but mosaicml-streaming reads only torchrun's LOCAL_WORLD_SIZE; without it
    every rank assumes that it has the node to itself (mosaicml/streaming #717). Without any launcher the world is a
    single rank.

    Raises:
        UserError: the variables are not those of a rank.
    """
    env = os.environ
    launch = Launch(job=f"process {os.getpid()} on {socket.gethostname()}")
    if "RANK" not in env:
        launch = _take_variables_of_mpi_or_slurm(env) or launch
    has_launcher = "LOCAL_RANK" in env
    env.setdefault("RANK", "0")
    env.setdefault("LOCAL_RANK", "0")
    env.setdefault("WORLD_SIZE", "1")
    env.setdefault("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", "1"))
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "0" if env["WORLD_SIZE"] == "1" else "29500")  # 0: any free port
    raise_if_any(_problems(env), heading="variables of the launcher (without one, unset them)")
    rank, local_rank, world_size, local_world_size = (int(env[name]) for name in _PLACE)
    return World(
        rank=rank, local_rank=local_rank, world_size=world_size, local_world_size=local_world_size,
        has_launcher=has_launcher, launch=launch,
    )  # fmt: skip


def _take_variables_of_mpi_or_slurm(env: MutableMapping[str, str]) -> Launch | None:
    """Set torchrun's variables from those of mpirun or srun; return the job if it is Slurm's.

    mpirun reaches other nodes by srun, so the ranks that it starts there have srun's variables too. Those count only in
    the tasks of a job step, because a batch script has some of them as well when it starts ranks with another launcher,
    or a single process.

    Raises:
        UserError: mpirun's variables do not say where the ranks can meet.
    """
    for names in _OF_MPI:
        if all(name in env for name in names):
            env.update(zip(_PLACE, (env[name] for name in names), strict=True))
            if env["LOCAL_WORLD_SIZE"] != env["WORLD_SIZE"] and "MASTER_ADDR" not in env:
                raise UserError(
                    f"{names[0]}: mpirun does not say where the ranks of several nodes can meet; give the first node's"
                    " name, with mpirun -x MASTER_ADDR=HOST (Open MPI) or -genv MASTER_ADDR HOST (MPICH)"
                )
            return None
    if "SLURM_STEP_ID" in env:
        env.update(RANK=env["SLURM_PROCID"], LOCAL_RANK=env["SLURM_LOCALID"], WORLD_SIZE=env["SLURM_STEP_NUM_TASKS"])
        env["LOCAL_WORLD_SIZE"] = str(tasks_on_node(env["SLURM_STEP_TASKS_PER_NODE"], node=int(env["SLURM_NODEID"])))
        env.setdefault("MASTER_ADDR", first_host(env["SLURM_STEP_NODELIST"]))
        env.setdefault(
            "MASTER_PORT", str(20_000 + int(env["SLURM_JOB_ID"]) % 10_000)
        )  # one port per job, because jobs may share a node
        return Launch(job=f"Slurm job {env['SLURM_JOB_ID']}", restart=int(env.get("SLURM_RESTART_COUNT", "0")))
    if env.get("PMI_SIZE", "1") != "1":
        raise UserError(
            f"PMI_SIZE={env['PMI_SIZE']}, but nothing says which ranks share a node; start the ranks with torchrun or"
            " deepspeed (docs/operations.md)"
        )
    return None


def _problems(env: Mapping[str, str]) -> list[str]:
    """Return what is wrong with the variables of a rank, one line each."""
    n_ranks, n_on_node = (_number(env[name]) or 1 for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    allowed = {
        "WORLD_SIZE": (range(1, _MOST_RANKS + 1), f"from 1 to {_MOST_RANKS:,}"),
        "LOCAL_WORLD_SIZE": (range(1, n_ranks + 1), f"from 1 to WORLD_SIZE={env['WORLD_SIZE']}"),
        "RANK": (range(n_ranks), f"below WORLD_SIZE={env['WORLD_SIZE']}"),
        "LOCAL_RANK": (range(n_on_node), f"below LOCAL_WORLD_SIZE={env['LOCAL_WORLD_SIZE']}"),
        "MASTER_PORT": (range(1 << 16), "from 0 to 65,535"),
    }
    return [
        f"{name}={env[name]!r} must be a whole number {bounds}"
        for name, (numbers, bounds) in allowed.items()
        if _number(env[name]) not in numbers
    ]


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def tasks_on_node(tasks_per_node: str, *, node: int) -> int:
    """Return the number of tasks on a node, by its index, from Slurm's notation: "2(x3),1" means 2, 2, 2, 1."""
    counts = [
        int(count)
        for entry in tasks_per_node.split(",")
        for count, _, times in [entry.rstrip(")").partition("(x")]
        for _ in range(int(times or 1))
    ]
    return counts[node]


def first_host(hosts: str) -> str:
    """Return the first host of a list in Slurm's notation, where rank 0 runs: gpu01 for "gpu[01-03,7],big"."""
    found = re.match(r"([^,\[]*)(?:\[([^],-]+)[^]]*\])?([^,\[]*)", hosts)
    assert found is not None  # the pattern matches any text
    return "".join(part or "" for part in found.groups())
