"""The column of srun in the table of exit codes in docs/operations.md."""

import sys
from pathlib import Path

import psutil
import pytest

from tests.helpers.exit_codes import Launcher, documented, measured
from tests.slurm.cluster import SCRATCH, Cluster


@pytest.mark.slurm
def test_the_exit_codes_of_srun_are_as_documented(cluster: Cluster, byte_shards: Path, tmp_path: Path) -> None:
    """srun runs inside of the controller's namespaces, where nsenter, which the test starts, waits for it."""

    def rank_of(run_dir: Path) -> int:
        (rank,) = cluster.processes(rf"\S*python\S* -m tests\.helpers\.held .*run\.name={run_dir.name} ")
        return rank

    def process_of(nsenter: int) -> int:
        (srun,) = psutil.Process(nsenter).children()
        return srun.pid

    srun = Launcher(
        command=lambda: cluster.inside_controller(
            "srun", "--nodes=1", "--ntasks=1", "--unbuffered", sys.executable, "-m"
        ),
        variables={**cluster.environment, "TMPDIR": SCRATCH, "GLOO_SOCKET_IFNAME": "eth0"},
        rank_of=rank_of,
        process_of=process_of,
    )
    found = measured({"srun": srun}, shards=byte_shards, folder=tmp_path)
    assert found["srun"] == documented()[1]["srun"]
