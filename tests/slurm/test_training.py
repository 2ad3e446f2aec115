"""Training jobs on a real Slurm with the shipped templates: signals, requeues, lost nodes, and refusals."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runtime.stop import ExitCode
from tests.conftest import launch_deepspeed
from tests.slurm.cluster import wait_for
from tests.slurm.site import EVERY, SHRUNK, STEPS, VARIABLES, Project, edited_site

pytestmark = pytest.mark.slurm
UNDER_WAY = 5  # steps: the run is training and has no checkpoint yet


@contextlib.contextmanager
def frozen(project: Project, run_name: str) -> Iterator[list[int]]:
    """Stop a run's ranks inside the context; yield their pids. Signals arrive when the context ends."""
    pids = list(project.ranks(run_name))
    assert len(pids) == 2
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield pids
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def was_sent(pid: int, number: signal.Signals) -> bool:
    """Return whether a frozen process was sent a signal: it is pending, or Slurm has continued the process."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True
    lines = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
    return not lines["State"].startswith("T") or bool(int(lines["ShdPnd"], 16) >> (number - 1) & 1)


def wait_for_restart(project: Project, job_id: str, *, restarts: int = 1) -> None:
    wait_for(lambda: project.cluster.job(job_id).restarts == restarts, f"a requeue of job {job_id}")


def assert_finished(project: Project, job_id: str, *, restarts: int) -> None:
    job = project.cluster.wait_for_end(job_id)
    assert (job.state, job.restarts) == ("COMPLETED", restarts), project.log(job_id)


def test_two_nodes_train_like_one_launcher(project: Project, uninterrupted: str) -> None:
    process = launch_deepspeed(
        "pipeline.train", "--config", VARIABLES["RECIPE"], "--deepspeed_config", VARIABLES["DEEPSPEED_CONFIG"], *SHRUNK,
        f"data.shards={project.shards}", f"run.dir={project.root / 'runs'}", "run.name=one-launcher",
    )  # fmt: skip
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    project.assert_close_losses(uninterrupted, "one-launcher")


def test_each_rank_has_a_log_and_the_jobs_log_has_one_line(project: Project, uninterrupted: str) -> None:
    logs = sorted(path.name for path in (project.run_dir(uninterrupted) / "ranks").glob("output_*"))
    assert logs == ["output_00000.log", "output_00001.log"]
    assert f"step {STEPS}/{STEPS}" in (project.run_dir(uninterrupted) / "ranks" / "output_00000.log").read_text()
    (job_log,) = (path for path in project.root.glob("slurm-*.log") if "runs/uninterrupted" in path.read_text())
    assert len(job_log.read_text().splitlines()) == 1


def test_the_warning_before_the_time_limit_saves_and_the_job_continues(project: Project, uninterrupted: str) -> None:
    """The template has --signal=USR1@300; the time limit is lowered while the run is training."""
    job_id = project.train("limited")
    project.wait_for_step("limited", UNDER_WAY)
    with frozen(project, "limited") as pids:
        project.cluster.run("scontrol", "update", f"JobId={job_id}", "TimeLimit=6")
        wait_for(lambda: all(was_sent(pid, signal.SIGUSR1) for pid in pids), "USR1 on both ranks")
    wait_for_restart(project, job_id)
    project.cluster.run("scontrol", "update", f"JobId={job_id}", "TimeLimit=60")
    assert_finished(project, job_id, restarts=1)
    assert "stopped on request (SIGUSR1 on rank 0, SIGUSR1 on rank 1)" in project.train_log("limited")
    assert f"requeueing job {job_id} after exit code {ExitCode.STOPPED}" in project.log(job_id)
    project.assert_same_losses("limited", uninterrupted)


def test_a_cancelled_job_saves_and_does_not_start_again(project: Project, uninterrupted: str) -> None:
    job_id = project.train("cancelled")
    project.wait_for_step("cancelled", UNDER_WAY)
    with frozen(project, "cancelled"):
        project.cluster.run("scancel", job_id)
    job = project.cluster.wait_for_end(job_id)
    assert (job.state, job.restarts) == ("CANCELLED", 0), project.log(job_id)
    assert "stopped on request (SIGTERM" in project.train_log("cancelled")
    stopped_at = max(project.metrics("cancelled"))
    assert stopped_at < STEPS
    assert (project.run_dir("cancelled") / "checkpoints" / f"step_{stopped_at:08d}").is_dir()


def test_a_job_requeued_by_hand_continues(project: Project, uninterrupted: str) -> None:
    """After `scontrol requeue`, signals arrive while Python starts; none is lost, and none kills a rank."""
    job_id = project.train("requeued")
    project.wait_for_step("requeued", UNDER_WAY)
    with frozen(project, "requeued") as old_ranks:
        project.cluster.run("scontrol", "requeue", job_id)
    wait_for_restart(project, job_id)
    wait_for(lambda: len(set(project.ranks("requeued")) - set(old_ranks)) == 2, "the ranks of the second start")
    project.cluster.run("scancel", "--signal=USR1", job_id)
    assert_finished(project, job_id, restarts=2)
    project.assert_same_losses("requeued", uninterrupted)


def test_a_preempted_job_saves_and_continues_when_nodes_are_free(project: Project, uninterrupted: str) -> None:
    job_id = project.train("preempted")
    project.wait_for_step("preempted", UNDER_WAY)
    with frozen(project, "preempted") as pids:
        options = ("--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true")
        urgent = project.cluster.run("sbatch", "--parsable", *options).stdout.strip()
        wait_for(lambda: all(was_sent(pid, signal.SIGTERM) for pid in pids), "TERM on both ranks")
    assert project.cluster.wait_for_end(urgent).state == "COMPLETED"
    assert_finished(project, job_id, restarts=1)
    assert "stopped on request (SIGTERM" in project.train_log("preempted")
    project.assert_same_losses("preempted", uninterrupted)


def test_a_job_continues_without_a_node_that_lost_power(project: Project, uninterrupted: str) -> None:
    job_id = project.train("node-lost")
    project.wait_for_step("node-lost", EVERY + 2)  # no rank can save at the end, so a checkpoint must exist
    (lost,) = {node for pid, node in project.ranks("node-lost").items() if node != "n1"}
    project.cluster.power_off(lost)
    assert_finished(project, job_id, restarts=1)
    assert lost not in project.cluster.job(job_id).nodes
    project.cluster.power_on(lost)
    project.cluster.wait_until_idle()
    project.assert_same_losses("node-lost", uninterrupted)


def test_ranks_on_an_unreachable_node_stop_writing(project: Project, uninterrupted: str) -> None:
    """Only the node's slurmd dies: its ranks train on beside the job's next start, until they find their lease gone."""
    with edited_site(project, TRAIN_NODES=1, RANKS_PER_NODE=2):
        job_id = project.train("split")
        project.wait_for_step("split", UNDER_WAY)
        with frozen(project, "split") as old_ranks:
            (node,) = set(project.ranks("split").values())
            project.cluster.kill_daemon(node)
            wait_for_restart(project, job_id)
            wait_for(lambda: lease_of(project, "split").get("restart") == 1, "the second start's lease")
        wait_for(lambda: not set(old_ranks) & set(project.ranks("split")), "the end of the first start's ranks")
        assert_finished(project, job_id, restarts=1)
    project.cluster.start_daemon(node)
    project.cluster.wait_until_idle()
    assert f"Slurm job {job_id}, start 2 has taken this run over" in project.train_log("split")
    project.assert_same_losses("split", uninterrupted)


def lease_of(project: Project, run_name: str) -> dict[str, object]:
    return json.loads((project.run_dir(run_name) / "lease.json").read_text())


BROKEN = """#!/bin/bash
case " $* " in *" pipeline.train "*) echo "no such library" >&2; exit 1 ;; esac
exec {python} "$@"
"""


def test_a_job_that_fails_twice_at_the_same_step_ends(project: Project, tmp_path: Path) -> None:
    """The job's software fails before the first step."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(BROKEN.format(python=sys.executable))
    python.chmod(0o755)
    with edited_site(project, VENV=python.parent.parent):
        job_id = project.train("broken")
        job = project.cluster.wait_for_end(job_id)
    assert (job.state, job.restarts) == ("FAILED", 1), project.log(job_id)
    assert f"job {job_id} does not start again: it ended twice after step 0" in project.log(job_id)


def test_a_refused_start_is_final(project: Project, uninterrupted: str) -> None:
    """The checkpoint is of another run, which only the ranks can find out."""
    job_id = project.train("uninterrupted", "train.seed=2")
    job = project.cluster.wait_for_end(job_id)
    assert (job.state, job.restarts) == ("FAILED", 0), project.log(job_id)
    assert "exit code 2 is final" in project.log(job_id)


def test_a_bad_node_is_named(project: Project) -> None:
    with edited_site(project, INTERFACE="ib7"):
        job_id = project.train("sick")
        word = "has no network interface ib7 (it has: eth0 lo)"
        wait_for(lambda: word in project.log(job_id), "the message about the interface")
        project.cluster.run("scancel", job_id)
        project.cluster.wait_for_end(job_id)
    assert word in project.log(job_id)
