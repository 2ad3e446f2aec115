"""Drop near duplicates of a corpus that is too large for one process to decide on, by datatrove's MinHash.

    OUT/documents/00000.jsonl.zst ...   the documents that stay, with all that their records said, their `path` and
                                        `language`: input of write_shards
    OUT/summary.json                    how many there were, were dropped by rules, are duplicates; written last
    OUT/work/, OUT/logs/                while unfinished, what stages leave to each other; datatrove's logs

`write_shards --dedup near` decides in one process, which holds a band of all documents. Here, nothing holds more than
one share's signatures and the pairs: the corpus is cut into tasks, and each of the four stages (`minhash_steps`) runs
them in any number of processes. Signatures and bands are the same. Two differences: documents with one band in common
are a pair, whatever the rest of their signatures says; and of documents that are connected by pairs, one stays, mostly
the first. Documents of fewer than 5 words all stay; write_shards --dedup exact drops those that are equal.

The same command on the same input writes the same documents, with any number of workers and after any kill: tasks that
are finished are not run again. The number of tasks decides the files alone. On a cluster, --slurm_partition queues all
tasks as job arrays instead of running them, stage after stage, by datatrove; once they are through, the same command
without it finds nothing left but to finish.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from common.command_line import UserError, below_one, command_parser, exit_on_user_error, raise_if_any
from common.files import hold_lock, sha256_of_file, write_json
from data_prep.dedup.survey import NEAR_DUPLICATE
from data_prep.filters.decontaminate import load_benchmark
from data_prep.filters.options import add_rule_arguments, apply_preset, filter_options, filter_problems
from data_prep.shards.folder import read_json, refuse_difference
from data_prep.sources.documents import Piece
from data_prep.sources.listing import ListedSource, add_source_arguments, cut_into_parts, read_options, sources_of
from data_prep.sources.standard_input import STDIN
from data_prep.workers import Progress, add_workers_argument, results_of, worker_pool

if TYPE_CHECKING:
    from datatrove.executor.local import LocalPipelineExecutor

SUMMARY, DOCUMENTS = "summary.json", "documents"
_PLAN, _LOCK, _WORK, _LOGS = "plan.json", ".lock", "work", "logs"
_NOT_IDENTITY = ("out", "num_workers", "strict", "slurm_partition", "slurm_time")
REPOSITORY = Path(__file__).resolve().parent.parent
_PIECE_BYTES = 8 << 20
_EXAMPLES = """example:
  python -m data_prep.deduplicate_corpus --input stack/*.parquet --text_field content --language_field lang \\
      --filters starcoder --out data/deduplicated --tasks 64
  python -m data_prep.write_shards --input data/deduplicated/documents --extensions .jsonl.zst --text_field content \\
      --language_field lang --dedup exact --tokenizer tokenizer.model --out data/stack

A killed run is continued by the same command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments, the input or the output folder do not allow it; the message says which and why.
    """
    arguments = _parse(argv)
    out: Path = arguments.out
    sources = sources_of(arguments, work=out / _WORK, piece_bytes=_PIECE_BYTES)
    shares = _cut(sources, n_tasks=arguments.tasks)
    plan = _plan(arguments, sources, shares)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if holder := hold_lock(out / _LOCK):
            raise UserError(f"{holder} is writing to {out}; wait for it, or choose another --out")
        if _claim(out, plan):
            shutil.rmtree(out / _WORK, ignore_errors=True)  # a run killed after its last word
            print(f"{out} is already finished, with the same arguments; nothing to do")
            return
        stages = _stages(arguments, shares)
        if arguments.slurm_partition:
            _submit(stages, out, partition=arguments.slurm_partition, time_limit=arguments.slurm_time)
            print("when no job is left, the same command without --slurm_partition runs what failed, and finishes")
            return
        _run(stages, out, num_workers=arguments.num_workers)
        print(_finish(out, sources, n_tasks=len(shares)))
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}; the same command continues it") from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.deduplicate_corpus", description=__doc__, epilog=_EXAMPLES)
    add_source_arguments(parser)
    add_rule_arguments(parser)
    group = parser.add_argument_group("work")
    group.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    tasks_help = "shares of the corpus, at most: the unit of work and of restart, and the files (default: %(default)s)"
    group.add_argument("--tasks", type=int, default=16, metavar="N", help=tasks_help)
    add_workers_argument(group)
    slurm_help = "queue the tasks as job arrays of Slurm there; sbatch reads the rest from SBATCH_ACCOUNT and the like"
    group.add_argument("--slurm_partition", metavar="NAME", help=slurm_help)
    time_help = "limit of each of these jobs (default: %(default)s)"
    group.add_argument("--slurm_time", default="12:00:00", metavar="TIME", help=time_help)
    arguments = parser.parse_args(argv)
    apply_preset(arguments)
    raise_if_any(_problems(arguments), heading="bad arguments")
    for path in arguments.decontaminate or ():
        load_benchmark(path)
    return arguments


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = below_one(arguments, "tasks", "num_workers")
    if arguments.out.exists() and not arguments.out.is_dir():
        problems.append(f"--out {arguments.out} is a file; give a folder")
    if arguments.mix or STDIN in arguments.input:
        problems.append("weights of --mix, and standard input, are for write_shards; give files or folders as --input")
    return problems + filter_problems(arguments)


def _cut(sources: Sequence[ListedSource], *, n_tasks: int) -> list[list[Piece]]:
    """Return the pieces of each task, consecutive ones, of about as many bytes."""
    pieces = [piece for source in sources for piece in source.pieces]
    n_bytes = sum(piece.size for piece in pieces)
    return cut_into_parts(pieces, part_bytes=max(1, -(-n_bytes // n_tasks)))


def _plan(arguments: argparse.Namespace, sources: Sequence[ListedSource], shares: list[list[Piece]]) -> dict[str, Any]:
    named = {name: value for name, value in vars(arguments).items() if name not in _NOT_IDENTITY}
    if arguments.decontaminate:  # what the files say decides, not their names alone
        named["decontaminate"] = {path: sha256_of_file(Path(path)) for path in arguments.decontaminate}
    listing = xxhash.xxh3_64_hexdigest(repr(shares))
    return {"arguments": named, "sources": [source.summary() for source in sources], "listing": listing}


def _claim(out: Path, plan: dict[str, Any]) -> bool:
    """Take a folder that is empty or of the same plan; return whether it is finished.

    Raises:
        UserError: it holds something else.
    """
    found = read_json(out / _PLAN)
    if found is None:
        if strangers := sorted({path.name for path in out.iterdir()} - {_LOCK}):
            raise UserError(f"--out {out} is not empty and no corpus of ours (it holds {strangers[0]}); choose another")
        write_json(out / _PLAN, plan)
    else:
        refuse_difference(found, plan, out=out, state="was written")
    return (out / SUMMARY).exists()


def _stages(arguments: argparse.Namespace, shares: list[list[Piece]]) -> dict[str, Any]:
    from data_prep.dedup.minhash import stages_of, write_shares

    work = arguments.out.absolute() / _WORK
    write_shares(shares, work)
    return stages_of(work, n_tasks=len(shares), reading=read_options(arguments), filters=filter_options(arguments))


def _run(stages: dict[str, Any], out: Path, *, num_workers: int) -> None:
    """Run what is missing of the stages."""
    from datatrove.executor.local import LocalPipelineExecutor

    with worker_pool(num_workers) as (pool, progress):
        for name, (steps, n_tasks) in stages.items():
            executor = LocalPipelineExecutor(steps, tasks=n_tasks, workers=1, logging_dir=_logs(out, name))
            _run_stage(executor, pool, progress, name=name)


def _logs(out: Path, stage: str) -> str:
    """Return where datatrove keeps the logs of a stage, and its marks of finished tasks."""
    return str(out.absolute() / _LOGS / stage)


def _submit(stages: dict[str, Any], out: Path, *, partition: str, time_limit: str) -> None:
    """Queue what is missing of the stages as job arrays, each after the one before.

    Raises:
        UserError: there is no Slurm here, or it refuses them.
    """
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from loguru import logger

    logger.remove()  # what datatrove says of its launches
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
            logging_dir=_logs(out, name),
            depends=next(reversed(queued.values()), None),
        )
    try:
        next(reversed(queued.values())).run()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"sbatch does not take the jobs ({error}); see {out / _LOGS}") from error
    for name, executor in queued.items():
        print(f"{name}: {'finished already' if executor.job_id == -1 else f'job {executor.job_id}'}")


def _run_stage(executor: "LocalPipelineExecutor", pool: ProcessPoolExecutor, progress: Progress, *, name: str) -> None:
    """Run the tasks that datatrove has not marked as completed, in our processes: they end with this one."""
    futures = [pool.submit(_run_task, executor, rank) for rank in executor.get_incomplete_ranks()]
    results_of(futures, progress, input_bytes=None, verb=name)


def _run_task(executor: "LocalPipelineExecutor", rank: int) -> None:
    """Run one task as datatrove does; what it says is in its log, and an error is the parent's to tell."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stderr(nowhere):
        executor._run_for_rank(rank)


def _finish(out: Path, sources: Sequence[ListedSource], *, n_tasks: int) -> str:
    """Put the documents in their place, and say what there was."""
    from data_prep.dedup.minhash import counts_of

    n_documents, n_left, dropped = counts_of(out / _WORK, n_tasks)
    dropped.update(skipped.reason for source in sources for skipped in source.skipped)
    dropped[NEAR_DUPLICATE] = n_documents - n_left
    if n_left == 0:
        raise UserError(f"no documents in {' '.join(source.path for source in sources)}; dropped: {dict(dropped)}")
    if (out / _WORK / DOCUMENTS).exists():
        (out / _WORK / DOCUMENTS).replace(out / DOCUMENTS)
    write_json(out / SUMMARY, {"kept": n_left, "dropped": dict(sorted(dropped.items()))})
    shutil.rmtree(out / _WORK)
    lines = [f"  {reason:<26}{count:>12,} documents dropped" for reason, count in sorted(dropped.items())]
    return "\n".join([f"{out / DOCUMENTS} is finished: {n_left:,} documents in {n_tasks} files", *lines])


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.deduplicate_corpus")
