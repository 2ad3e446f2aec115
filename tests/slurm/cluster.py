"""A real Slurm on this machine: one controller and some nodes, each in Linux namespaces of its own.

A node has its own network, process table, host name, shared memory and scratch disk (SCRATCH), so that it can lose its
power, its daemon or its network cable like a real machine. All other files are those of this machine, as on a cluster
with a shared file system. All cables lead to a bridge in the controller's network; this machine's network is not used.

    controller  ctl 10.88.0.250: munged, slurmctld, and the commands of users (`Cluster.run`)
    node i      ni  10.88.0.i:   slurmd, its step daemons, and the tasks

The first process of each only waits. It ends when this process ends, in whatever way, and everything inside ends with
it. munged's socket is a file, so all nodes can reach it.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

CPUS_PER_NODE = 2
PATIENCE_S = 300.0  # for events that take seconds on an idle machine
BRIDGE, CONTROLLER = "br0", "10.88.0.250"
COMMANDS = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare", "nsenter", "setpriv")
# It ignores every signal except the one that ends namespaces, and reaps the children that others leave behind.
FIRST_PROCESS = """hostname {host}; mount --bind {hosts} /etc/hosts; ip link set lo up
mount --rbind /sys/fs/cgroup {scratch}; mount -t sysfs none /sys; mount --move {scratch} /sys/fs/cgroup
for folder in /dev/shm {scratch}; do mount -t tmpfs none $folder; done
echo up; sleep infinity & wait"""
SCRATCH = "/mnt"


def unavailable() -> str | None:
    """Return why this machine cannot run the cluster, or None."""
    if os.geteuid() != 0:
        return "Slurm in namespaces needs root"
    missing = [name for name in COMMANDS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing; tests/slurm/install.sh installs Slurm on Debian and Ubuntu"
    trial = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "mount", "-t", "sysfs", "none", "/sys"]
    if subprocess.run(trial, capture_output=True, check=False).returncode:
        return "the kernel refuses namespaces with mounts of their own (is this a container without privileges?)"
    return None


def wait_for(condition: Callable[[], bool], what: str, *, timeout_s: float = PATIENCE_S, every_s: float = 0.2) -> None:
    """Poll until the condition holds; after `timeout_s`, fail with `what` was expected."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(every_s)


class Machine:
    """A set of namespaces that looks like a machine, with its first process."""

    def __init__(self, host: str, *, hosts: Path) -> None:
        self.host = host
        setup = FIRST_PROCESS.format(host=host, hosts=hosts, scratch=SCRATCH)
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--pid", "--mount", "--uts", "--fork"]
        self._unshare = subprocess.Popen(
            [*command, "--kill-child", "--mount-proc", "bash", "-c", setup],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self._unshare.stdout is not None
        assert self._unshare.stdout.readline() == "up\n"
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text()
        self.first_pid = int(children.split()[0])

    def inside(self, *command: str) -> list[str]:
        """Return the command line that runs `command` on this machine."""
        return ["nsenter", "--target", str(self.first_pid), "--net", "--pid", "--mount", "--uts", *command]

    def power_off(self) -> None:
        """Kill every process on it at once."""
        self._unshare.kill()
        self._unshare.wait()


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as Slurm describes it: its base state, how often it was requeued, and its nodes."""

    state: str
    restarts: int
    nodes: str

    @property
    def has_ended(self) -> bool:
        """True if it is neither running, waiting, nor being ended."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED")


class Cluster:
    """A controller and `n_nodes` nodes; to be used as a context manager, which ends all of their processes."""

    def __init__(self, directory: Path, *, n_nodes: int) -> None:
        self._directory, self._n_nodes = directory, n_nodes
        for name in ("state", "spool", "log"):
            (directory / name).mkdir(parents=True)
        self.environment = {**os.environ, "SLURM_CONF": str(directory / "slurm.conf")}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._controller: Machine
        self.nodes: dict[str, Machine] = {}

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for machine in (*self.nodes.values(), getattr(self, "_controller", None)):
            if machine is not None:
                machine.power_off()
        for daemon in self._daemons.values():
            daemon.wait()

    def run(
        self, *command: object, check: bool = True, cwd: Path = REPOSITORY, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the controller, as a user does."""
        done = subprocess.run(
            self.inside_controller(*map(str, command), cwd=cwd), capture_output=True, text=True,
            check=False, env={**self.environment, **variables}, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command[0]}: {done.stdout}{done.stderr}"
        return done

    def inside_controller(self, *command: str, cwd: Path = REPOSITORY) -> list[str]:
        """Return the command line that runs `command` on the controller, with `environment`."""
        return self._controller.inside("env", f"--chdir={cwd}", *command)

    def job(self, job_id: str) -> Job:
        """Return Slurm's description of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", job_id).stdout
        fields = dict(re.findall(r"(\w+)=(\S*)", text))
        return Job(state=fields["JobState"], restarts=int(fields["Restarts"]), nodes=fields["NodeList"])

    def wait_for_end(self, job_id: str, *, timeout_s: float = PATIENCE_S) -> Job:
        """Wait for the end of a job; return Slurm's description of it."""
        wait_for(lambda: self.job(job_id).has_ended, f"the end of job {job_id}", timeout_s=timeout_s)
        return self.job(job_id)

    def processes(self, pattern: str) -> dict[int, str]:
        """Return the processes on nodes whose command line matches the pattern: pid on this machine, and node."""
        found, spaces = {}, {}
        for name, machine in self.nodes.items():
            with contextlib.suppress(FileNotFoundError):  # it has no power
                spaces[os.readlink(f"/proc/{machine.first_pid}/ns/pid")] = name
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                node = spaces.get(os.readlink(process / "ns" / "pid"))
                if node is not None and re.match(pattern, line):
                    found[int(process.name)] = node
        return found

    def kill_daemon(self, node: str) -> None:
        """Kill the node's slurmd; its step daemons and their tasks go on."""
        for pid, where in self.processes("slurmd -D ").items():
            if where == node:
                os.kill(pid, signal.SIGKILL)
        self._daemons[node].wait()

    def bind(self, source: Path, place: Path) -> None:
        """Bind-mount a folder at another path, on all machines."""
        place.mkdir(exist_ok=True)
        for machine in (self._controller, *self.nodes.values()):
            subprocess.run(machine.inside("mount", "--bind", str(source), str(place)), check=True)

    def start(self, node: str, *command: str) -> None:
        """Start another daemon on a node, in addition to its slurmd."""
        self._start_daemon(f"{command[0]}-{node}", self.nodes[node], command)

    def start_daemon(self, node: str) -> None:
        """Start the node's slurmd."""
        self._start_daemon(node, self.nodes[node], ["slurmd", "-D", "-N", node])

    def power_off(self, node: str) -> None:
        """Kill every process of the node at once."""
        self.nodes[node].power_off()

    def power_on(self, node: str) -> None:
        """Boot a node that is off or new."""
        number = int(node.removeprefix("n"))
        self.nodes[node] = machine = Machine(node, hosts=self._directory / "hosts")
        wire = ["ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0"]
        wire += ["netns", str(machine.first_pid)]
        for command in (
            self._in_hub_network(*wire),
            self._in_hub_network("ip", "link", "set", f"v{number}", "master", BRIDGE, "up"),
            machine.inside("ip", "addr", "add", f"10.88.0.{number}/24", "dev", "eth0"),
            machine.inside("ip", "link", "set", "eth0", "up"),
        ):
            subprocess.run(command, check=True)
        self.start_daemon(node)

    def cut(self, node: str) -> None:
        """Pull the node's network cable."""
        self._cable(node, "down")

    def join(self, node: str) -> None:
        """Plug the cable in again."""
        self._cable(node, "up")

    def wait_until_idle(self) -> None:
        """Wait until every node is free and healthy."""

        def idle() -> bool:
            return (
                self.run("sinfo", "-hN", "--partition=main", "-o", "%T", check=False).stdout.split()
                == ["idle"] * self._n_nodes
            )

        wait_for(idle, "all nodes idle")

    def _cable(self, node: str, state: str) -> None:
        subprocess.run(self._in_hub_network("ip", "link", "set", f"v{node.removeprefix('n')}", state), check=True)

    def _in_hub_network(self, *command: str) -> list[str]:
        """Return the command line that uses the controller's network, but this machine's process ids."""
        return ["nsenter", "--target", str(self._controller.first_pid), "--net", *command]

    def _start(self) -> None:
        self._write_configuration()
        key, socket = self._directory / "munge.key", self._directory / "munge.socket"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        self._controller = Machine("ctl", hosts=self._directory / "hosts")
        for command in (
            ("ip", "link", "add", BRIDGE, "type", "bridge"),
            ("ip", "addr", "add", f"{CONTROLLER}/24", "dev", BRIDGE),
            ("ip", "link", "set", BRIDGE, "up"),
        ):
            subprocess.run(self._controller.inside(*command), check=True)
        munged = ["munged", "--foreground", "--force", f"--socket={socket}", f"--key-file={key}"]
        munged += [f"--{name}-file={self._directory / 'munged'}.{name}" for name in ("pid", "log", "seed")]
        self._start_daemon("munged", self._controller, munged)
        wait_for(socket.exists, "munged's socket")
        self._start_daemon("slurmctld", self._controller, ["slurmctld", "-D"])
        for number in range(1, self._n_nodes + 1):
            self.power_on(f"n{number}")
        self.wait_until_idle()

    def _start_daemon(self, name: str, machine: Machine, command: Sequence[str]) -> None:
        with (self._directory / "log" / f"{name}.out").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                machine.inside(*command), env=self.environment, cwd="/", stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def _write_configuration(self) -> None:
        names = [f"n{number}" for number in range(1, self._n_nodes + 1)]
        addresses = {name: f"10.88.0.{name.removeprefix('n')}" for name in names}
        lines = [f"{address} {name}" for name, address in {**addresses, "ctl": CONTROLLER}.items()]
        (self._directory / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        nodes = [
            f"NodeName={name} NodeAddr={address} CPUs={CPUS_PER_NODE} RealMemory=4000 State=UNKNOWN"
            for name, address in addresses.items()
        ]
        (self._directory / "slurm.conf").write_text(
            f"""ClusterName=test
SlurmctldHost=ctl({CONTROLLER})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credentials of its last start have expired; by default 2 minutes.
AuthInfo=socket={self._directory}/munge.socket,cred_expire=5
StateSaveLocation={self._directory}/state
SlurmdSpoolDir={self._directory}/spool/%n
SlurmctldPidFile={self._directory}/slurmctld.pid
SlurmdPidFile={self._directory}/slurmd.%n.pid
SlurmctldLogFile={self._directory}/log/slurmctld.log
SlurmdLogFile={self._directory}/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Nodes have the CPUs and memory given below, whatever this machine has.
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
MinJobAge=86400
# Seconds without an answer after which a node is down.
SlurmdTimeout=10
MessageTimeout=5
KillWait=15
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
{chr(10).join(nodes)}
# Jobs in the second partition preempt those in the first, which have GraceTime seconds to save.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES DefaultTime=30 MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=120
PartitionName=urgent Nodes=ALL DefaultTime=30 MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""
        )
