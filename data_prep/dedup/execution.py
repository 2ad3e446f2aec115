"""Running datatrove's stages: in worker processes of this command, or as job arrays of Slurm."""

import contextlib
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import UserError, say
from data_prep.workers import ProgressCounter, results_of, worker_pool

if TYPE_CHECKING:
    from datatrove.executor.local import LocalPipelineExecutor

REPOSITORY = Path(__file__).resolve().parents[2]
LOGS = "logs"  # datatrove's logs, and its marks of completed tasks


def run_here(stages: dict[str, Any], out: Path, *, num_workers: int) -> None:
    """Run the tasks of all stages that are not completed yet.

    Args:
        stages: by name, the steps and the number of tasks of each (`minhash.stages_of`).
        out: output folder of the command.
        num_workers: number of processes.
    """
    from datatrove.executor.local import LocalPipelineExecutor

    with worker_pool(num_workers) as (pool, progress):
        for name, (steps, n_tasks) in stages.items():
            executor = LocalPipelineExecutor(steps, tasks=n_tasks, workers=1, logging_dir=_log_folder(out, name))
            _run_stage(executor, pool, progress, name=name)


def submit(stages: dict[str, Any], out: Path, *, partition: str, time_limit: str) -> None:
    """Queue the tasks that are not completed yet as job arrays, one for each stage, each dependent on the one before.

    Args:
        stages: as in `run_here`.
        out: output folder of the command.
        partition: partition of Slurm.
        time_limit: limit of each job, in the notation of Slurm.

    Raises:
        UserError: there is no Slurm here, or it refuses the jobs.
    """
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from loguru import logger

    logger.remove()  # silences datatrove's messages on each launch
    environment = f'export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{REPOSITORY}:$PYTHONPATH"'
    queued: dict[str, SlurmPipelineExecutor] = {}
    for name, (steps, n_tasks) in stages.items():
        queued[name] = SlurmPipelineExecutor(
            steps,
            tasks=n_tasks,
            time=time_limit,
            partition=partition,
            qos="",
            job_name=f"deduplicate_{name}",
            env_command=environment,
            logging_dir=_log_folder(out, name),
            depends=next(reversed(queued.values()), None),
        )
    try:
        next(reversed(queued.values())).run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"sbatch does not accept the jobs: {error}; see {out / LOGS}") from error
    for name, executor in queued.items():
        say(f"{name}: {'finished already' if executor.job_id == -1 else f'job {executor.job_id}'}")


def _log_folder(out: Path, stage: str) -> str:
    return str(out.absolute() / LOGS / stage)


def _run_stage(
    executor: "LocalPipelineExecutor", pool: ProcessPoolExecutor, progress: ProgressCounter, *, name: str
) -> None:
    """Run the tasks that datatrove has not marked as completed in our pool, whose processes end with this one."""
    futures = [pool.submit(_run_task, executor, rank) for rank in executor.get_incomplete_ranks()]
    results_of(futures, progress, input_bytes=None, verb=name)


def _run_task(executor: "LocalPipelineExecutor", rank: int) -> None:
    """Run one task without datatrove's output on stderr, which its log file has, too; errors reach the parent."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        executor._run_for_rank(rank)
