"""Other launchers on two nodes: torchrun, and the deepspeed command with its ways of reaching nodes.

Each trains the same run as the shipped templates, and must get the same losses.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.slurm.cluster import SCRATCH, Cluster, wait_for
from tests.slurm.site import SHRUNK, VARIABLES, Project

pytestmark = pytest.mark.slurm
NODES = ("n1", "n2")
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def hostfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("launchers") / "hosts"
    path.write_text("".join(f"{node} slots=1\n" for node in NODES))
    return path


@pytest.fixture(scope="module")
def ssh(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Start an SSH server on each node, which accepts a key without a password from a shared home folder."""
    missing = [name for name in ("dropbear", "dropbearkey", "ssh", "ssh-keygen", "pdsh") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} missing; tests/slurm/install.sh installs them on Debian and Ubuntu")
    home = tmp_path_factory.mktemp("home") / ".ssh"
    home.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", home / "id_ed25519"], check=True)
    (home / "authorized_keys").write_bytes((home / "id_ed25519.pub").read_bytes())
    (home / "authorized_keys").chmod(0o600)
    (home / "config").write_text("StrictHostKeyChecking no\nUserKnownHostsFile /dev/null\nLogLevel ERROR\n")
    host_key = home.parent / "host_key"
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", host_key], check=True, capture_output=True)
    cluster.bind(home, Path.home() / ".ssh")
    for node in NODES:
        cluster.start(node, "dropbear", "-F", "-E", "-s", "-r", str(host_key))

    def all_answer() -> bool:
        return all(cluster.run("ssh", node, "true", check=False).returncode == 0 for node in NODES)

    wait_for(all_answer, "SSH to every node")


def arguments(project: Project, run_name: str) -> list[object]:
    """Return the arguments of pipeline.train in each of these runs."""
    return [
        "--config", VARIABLES["RECIPE"], "--deepspeed_config", VARIABLES["DEEPSPEED_CONFIG"], *SHRUNK,
        f"data.shards={project.shards}", f"run.dir={project.root / 'runs'}", f"run.name={run_name}",
    ]  # fmt: skip


def run(project: Project, *command: object, **variables: str) -> None:
    """Run a command on the controller from the root of the repository; fail if it fails."""
    path = f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin"
    environment = {"PATH": path, "GLOO_SOCKET_IFNAME": "eth0", "TMPDIR": SCRATCH, **variables}
    done = project.cluster.run(*command, cwd=REPOSITORY, check=False, **environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_torchrun_with_srun(project: Project, uninterrupted: str) -> None:
    run(
        project, "srun", "--nodes=2", "--ntasks-per-node=1", "torchrun", "--nnodes=2", "--nproc_per_node=1",
        "--rdzv_backend=c10d", "--rdzv_endpoint=n1:29400", "-m", "pipeline.train", *arguments(project, "torchrun"),
    )  # fmt: skip
    project.assert_close_losses("torchrun", uninterrupted)


def test_deepspeed_on_each_node(project: Project, uninterrupted: str, hostfile: Path) -> None:
    """Without ssh, the command that starts deepspeed on a node gives the node's rank; here it comes from Slurm."""
    command = 'exec deepspeed --no_ssh --node_rank "$SLURM_NODEID" "$@"'
    run(
        project, "srun", "--nodes=2", "--ntasks-per-node=1", "bash", "-c", command, "deepspeed", "--hostfile", hostfile,
        "--master_addr", "n1", "--module", "pipeline.train", *arguments(project, "deepspeed"),
    )  # fmt: skip
    project.assert_close_losses("deepspeed", uninterrupted)


@pytest.mark.usefixtures("ssh")
def test_deepspeed_with_pdsh(project: Project, uninterrupted: str, hostfile: Path) -> None:
    variables = hostfile.with_name("variables")  # pdsh passes on only the variables in such a file
    variables.write_text(f"TMPDIR={SCRATCH}\nGLOO_SOCKET_IFNAME=eth0\n")
    run(
        project, "deepspeed", "--hostfile", hostfile, "--module", "pipeline.train", *arguments(project, "pdsh"),
        DS_ENV_FILE=str(variables),
    )  # fmt: skip
    project.assert_close_losses("pdsh", uninterrupted)


def test_deepspeed_with_srun(project: Project, uninterrupted: str, hostfile: Path) -> None:
    """DeepSpeed's slurm launcher passes on neither --module nor an address; the ranks find the address in SLURM_*."""
    run(
        project, "deepspeed", "--hostfile", hostfile, "--launcher", "slurm", "--launcher_args=--ntasks-per-node=1",
        "--no_ssh_check", "--master_addr", "n1", "pipeline/train.py", *arguments(project, "slurm"),
    )  # fmt: skip
    project.assert_close_losses("slurm", uninterrupted)
