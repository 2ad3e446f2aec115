"""This process's place among the ranks, from the variables of each launcher."""

import os

import pytest

from common.command_line import UserError
from pipeline.runtime.world import Launch, World, first_host, tasks_on_node, world_from_environment

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
# The variables that srun sets for the fifth of seven tasks, on the third of four nodes.
STEP = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "1", "SLURM_PROCID": "4", "SLURM_LOCALID": "0", "SLURM_NODEID": "2",
    "SLURM_STEP_NUM_TASKS": "7", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1", "SLURM_NTASKS": "9",
    "SLURM_STEP_NODELIST": "n[3-6]",
}  # fmt: skip


def world_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> World:
    others = (name for name in os.environ if name.startswith(("SLURM", "OMPI_", "MV2_", "PMI_", "MPI_")))
    for name in (*NAMES, *others):
        monkeypatch.setenv(name, "")  # so that variables that the function sets are removed again
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return world_from_environment()


def place(world: World) -> tuple[int, int, int, int]:
    return world.rank, world.local_rank, world.world_size, world.local_world_size


@pytest.mark.parametrize(
    ("text", "counts"), [("1", [1]), ("2(x3),1", [2, 2, 2, 1]), ("8(x64)", [8] * 64), ("1,3(x2)", [1, 3, 3])]
)
def test_slurms_task_counts(text: str, counts: list[int]) -> None:
    assert [tasks_on_node(text, node=node) for node in range(len(counts))] == counts


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[007-019,33],big", "gpu007"), ("gpu[7,9]", "gpu7"), ("b,a[1-2]", "b"),
     ("rack[3,4-5]-node", "rack3-node"), ("127.0.0.1", "127.0.0.1")],
)  # fmt: skip
def test_the_first_host_runs_rank_0(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    world = world_of(monkeypatch, **STEP, SLURM_RESTART_COUNT="3")
    assert place(world) == (4, 0, 7, 2)
    assert world.has_launcher
    assert (world.launch.job, world.launch.restart) == ("Slurm job 77", 3)
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == {
        "RANK": "4", "LOCAL_RANK": "0", "WORLD_SIZE": "7", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "n3", "MASTER_PORT": "20077",
    }  # fmt: skip


def test_another_launcher_inside_a_slurm_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with torchrun, or deepspeed --launcher slurm: srun starts the launcher once on each node."""
    world = world_of(monkeypatch, **STEP, RANK="1", LOCAL_RANK="1", WORLD_SIZE="4", LOCAL_SIZE="2")
    assert place(world) == (1, 1, 4, 2)
    assert world.launch.job.startswith("process ")


def test_the_batch_script_itself_is_a_world_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = {name: value for name, value in STEP.items() if not name.startswith("SLURM_STEP")}
    world = world_of(monkeypatch, **batch)
    assert place(world) == (0, 0, 1, 1)
    assert not world.has_launcher


MPI = {
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE",
                 "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MVAPICH2": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_SIZE",
                 "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPICH": ("PMI_RANK", "MPI_LOCALRANKID", "PMI_SIZE", "MPI_LOCALNRANKS"),
}  # fmt: skip


@pytest.mark.parametrize("mpi", MPI)
def test_mpirun(monkeypatch: pytest.MonkeyPatch, mpi: str) -> None:
    """Also where mpirun reaches a node by srun, so that its ranks have the variables of a task of srun's."""
    of_rank = dict(zip(MPI[mpi], ("3", "1", "4", "2"), strict=True))
    world = world_of(monkeypatch, **of_rank, **STEP, MASTER_ADDR="n3")
    assert place(world) == (3, 1, 4, 2)
    assert world.has_launcher
    assert world.launch.job.startswith("process ")
    with pytest.raises(UserError, match="mpirun does not say where the ranks of several nodes can meet"):
        world_of(monkeypatch, **of_rank)
    alone = dict(zip(MPI[mpi], ("1", "1", "2", "2"), strict=True))
    assert place(world_of(monkeypatch, **alone)) == (1, 1, 2, 2)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("127.0.0.1", "29500")


def test_a_rank_that_does_not_know_its_node_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PMI's own variables do not tell; where srun sets them too, its other variables do."""
    with pytest.raises(UserError, match="PMI_SIZE=2, but nothing says which ranks share a node"):
        world_of(monkeypatch, PMI_RANK="1", PMI_SIZE="2")
    assert place(world_of(monkeypatch, PMI_RANK="4", PMI_SIZE="7", **STEP)) == (4, 0, 7, 2)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("RANK", "abc", "RANK='abc' must be a whole number below WORLD_SIZE=4"),
        ("RANK", "4", "RANK='4' must be a whole number below WORLD_SIZE=4"),
        ("RANK", "-1", "RANK='-1' must be"),
        ("RANK", "", "RANK='' must be"),
        ("WORLD_SIZE", "0", "WORLD_SIZE='0' must be a whole number from 1 to 1,048,576"),
        ("WORLD_SIZE", "9" * 30, "WORLD_SIZE='9"),
        ("WORLD_SIZE", "1", "RANK='1' must be a whole number below WORLD_SIZE=1"),
        ("LOCAL_RANK", "2", "LOCAL_RANK='2' must be a whole number below LOCAL_WORLD_SIZE=2"),
        ("LOCAL_WORLD_SIZE", "8", "LOCAL_WORLD_SIZE='8' must be a whole number from 1 to WORLD_SIZE=4"),
        ("LOCAL_WORLD_SIZE", "²", "LOCAL_WORLD_SIZE='²' must be"),
        ("MASTER_PORT", "x", "MASTER_PORT='x' must be a whole number from 0 to 65,535"),
        ("MASTER_PORT", "65536", "MASTER_PORT='65536' must be"),
    ],
)
def test_variables_that_no_rank_has_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, complaint: str
) -> None:
    variables = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    with pytest.raises(UserError) as refused:
        world_of(monkeypatch, **{**variables, name: value})
    assert complaint in str(refused.value)


def test_a_job_is_named_in_few_characters() -> None:
    assert [str(Launch(job="7")), str(Launch(job="7", restart=2))] == ["7", "7, start 3"]
    assert len(str(Launch(job="x" * 10_000, restart=1))) < 200
