"""Drop near duplicates from a corpus that is too large for one process to decide on, by datatrove's MinHash.

    OUT/documents/00000.jsonl.zst ...   the documents that stay: input of write_shards. Each keeps all fields of its
                                        record, and gets `path` and `language` if it has none
    OUT/summary.json                    how many documents stay, and how many were dropped, by reason; written last
    OUT/work/, OUT/logs/                while unfinished, the files between stages; datatrove's logs

`write_shards --dedup near` decides in one process, which holds one band of the signatures of all documents. Here, no
process holds more than the signatures of one slice of the corpus, or the pairs of near documents: the corpus is cut
into slices, and each of four stages runs one task for each slice or band, in any number of processes. Signatures and
bands are the same, with two differences. Documents that have a band in common are a pair, whatever the rest of their
signatures. And of documents that pairs connect, one stays, usually the first. Documents of fewer than 5 words all stay;
write_shards --dedup exact drops the equal ones among them.

The same command on the same input writes the same documents, with any number of workers and after any kill. Finished
tasks are not run again. The number of tasks only decides how many files there are. On a cluster, --slurm_partition
queues all tasks as job arrays, stage after stage, instead of running them. When the jobs are through, the same command
without it finishes the folder.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash

from common.command_line import UserError, command_parser, output_path, raise_if_any, say, whole_number
from common.files import hold_lock, write_json
from common.wording import counted
from data_prep.dedup.execution import run_here, submit
from data_prep.dedup.survey import NEAR_DUPLICATE, NEAR_METHOD
from data_prep.filters.changes import say_finished
from data_prep.filters.decontaminate import load_benchmark
from data_prep.filters.options import add_rule_arguments, apply_preset, filter_options, filter_problems
from data_prep.shards.identity import Identity, identifying_arguments, read_json, refuse_difference
from data_prep.sources.documents import Piece
from data_prep.sources.listing import ListedSource, cut_into_parts
from data_prep.sources.options import add_source_arguments, read_options, sources_of
from data_prep.sources.standard_input import STDIN
from data_prep.workers import add_workers_argument

SUMMARY, DOCUMENTS = "summary.json", "documents"
_PLAN, _LOCK, _WORK = "plan.json", ".lock", "work"
_NOT_IDENTITY = ("out", "num_workers", "strict", "slurm_partition", "slurm_time")
_PIECE_BYTES = 8 << 20
_EXAMPLES = """example:
  python -m data_prep.deduplicate_corpus --input stack/*.parquet --text_field content --language_field lang \\
      --filters starcoder --out data/deduplicated --tasks 64
  python -m data_prep.write_shards --input data/deduplicated/documents --text_field content --language_field language \\
      --dedup exact --tokenizer tokenizer.model --out data/stack

To continue a killed run, run the same command."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments are wrong, or the input or the output folder cannot be used; the message says why.
    """
    arguments = _parse(argv)
    out: Path = arguments.out
    sources = sources_of(arguments, work=out / _WORK, piece_bytes=_PIECE_BYTES)
    slices = _cut(sources, n_tasks=arguments.tasks)
    plan = _plan(arguments, sources, slices)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if holder := hold_lock(out / _LOCK):
            raise UserError(f"{holder} is writing to {out}; wait until it ends, or choose another --out")
        if _claim(out, plan):
            shutil.rmtree(out / _WORK, ignore_errors=True)  # in case a run was killed after it wrote the summary
            say_finished(out, out / SUMMARY, (piece for source in sources for piece in source.pieces))
            return
        stages = _stages(arguments, slices)
        if arguments.slurm_partition:
            submit(stages, out, partition=arguments.slurm_partition, time_limit=arguments.slurm_time)
            print("when all jobs have ended, run the same command without --slurm_partition to finish")
            return
        run_here(stages, out, num_workers=arguments.num_workers)
        if identifying_arguments(arguments, ignored=_NOT_IDENTITY) != plan["arguments"]:
            raise UserError("a file of --decontaminate changed while it was used; start again with another --out")
        say(_finish(out, sources, n_tasks=len(slices), text_field=arguments.text_field))
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; the same command continues where it stopped"
        ) from error


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("data_prep.deduplicate_corpus", description=__doc__, epilog=_EXAMPLES)
    add_source_arguments(parser, files_only=True)
    add_rule_arguments(parser)
    group = parser.add_argument_group("work")
    group.add_argument("--out", required=True, type=output_path, metavar="DIR", help="folder to write")
    tasks_help = "most slices of the corpus, the unit of work and of restart; each gives a file (default: %(default)s)"
    tasks = whole_number(at_least=1, at_most=100_000)
    group.add_argument("--tasks", type=tasks, default=16, metavar="N", help=tasks_help)
    add_workers_argument(group)
    slurm_help = "queue the tasks as job arrays on this partition of Slurm; set SBATCH_ACCOUNT etc. for other options"
    group.add_argument("--slurm_partition", metavar="NAME", help=slurm_help)
    time_help = "time limit of each of these jobs (default: %(default)s)"
    group.add_argument("--slurm_time", default="12:00:00", metavar="TIME", help=time_help)
    arguments = parser.parse_args(argv)
    apply_preset(arguments)
    raise_if_any(_problems(arguments), heading="bad arguments")
    for path in arguments.decontaminate or ():
        load_benchmark(path)
    return arguments


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if arguments.out.exists() and not arguments.out.is_dir():
        problems.append(f"--out {arguments.out} is a file; give a folder")
    if STDIN in arguments.input:
        problems.append("standard input is supported by write_shards only; give files or folders as --input")
    return problems + filter_problems(arguments)


def _cut(sources: Sequence[ListedSource], *, n_tasks: int) -> list[list[Piece]]:
    """Return slices of the corpus, each of consecutive pieces, with about equally many bytes."""
    pieces = [piece for source in sources for piece in source.pieces]
    n_bytes = sum(piece.size for piece in pieces)
    return cut_into_parts(pieces, part_bytes=max(1, -(-n_bytes // n_tasks)))


def _plan(arguments: argparse.Namespace, sources: Sequence[ListedSource], slices: list[list[Piece]]) -> Identity:
    return {
        "arguments": identifying_arguments(arguments, ignored=_NOT_IDENTITY),
        "sources": [source.summary() for source in sources],
        "near_method": NEAR_METHOD,
        "listing": xxhash.xxh3_64_hexdigest(repr(slices)),
    }


def _claim(out: Path, plan: Identity) -> bool:
    """Write the plan into an empty folder, or compare it with the one there; return whether the folder is finished.

    Raises:
        UserError: the folder holds something else.
    """
    found = read_json(out / _PLAN)
    if found is None:
        if foreign := sorted({path.name for path in out.iterdir()} - {_LOCK}):
            raise UserError(
                f"--out {out} is not empty, and was not written by deduplicate_corpus (it holds {foreign[0]}); choose"
                " another folder"
            )
        write_json(out / _PLAN, plan)
    else:
        refuse_difference(found, plan, out=out, state="was written")
    return (out / SUMMARY).exists()


def _stages(arguments: argparse.Namespace, slices: list[list[Piece]]) -> dict[str, Any]:
    from data_prep.dedup.minhash import stages_of, write_slices

    work = arguments.out.absolute() / _WORK
    write_slices(slices, work)
    return stages_of(work, n_tasks=len(slices), reading=read_options(arguments), filters=filter_options(arguments))


def _finish(out: Path, sources: Sequence[ListedSource], *, n_tasks: int, text_field: str) -> str:
    """Move the documents to their place, write the summary, and return it as text, with the command that reads them."""
    from data_prep.dedup.minhash import LANGUAGE, counts_of

    n_documents, n_left, dropped = counts_of(out / _WORK, n_tasks)
    dropped.update(skipped.reason for source in sources for skipped in source.skipped)
    dropped[NEAR_DUPLICATE] = n_documents - n_left
    if n_left == 0:
        raise UserError(f"no documents in {' '.join(source.path for source in sources)}; dropped: {dict(dropped)}")
    if (out / _WORK / DOCUMENTS).exists():
        (out / _WORK / DOCUMENTS).replace(out / DOCUMENTS)
    write_json(out / SUMMARY, {"kept": n_left, "dropped": dict(sorted(dropped.items()))})
    shutil.rmtree(out / _WORK)
    lines = [f"  {reason:<26}{counted(count, 'document'):>22} dropped" for reason, count in sorted(dropped.items())]
    finished = f"{out / DOCUMENTS} is finished: {counted(n_left, 'document')} in {counted(n_tasks, 'file')}"
    text_words = f" --text_field {shlex.quote(text_field)}" if text_field != "text" else ""
    command = (
        f"python -m data_prep.write_shards --input {shlex.quote(str(out / DOCUMENTS))}{text_words}"
        f" --language_field {LANGUAGE} --dedup exact --tokenizer bytes --out {shlex.quote(f'{out}-shards')}"
    )
    return "\n".join([finished, *lines, "next, or with the file of a tokenizer instead of bytes:", f"  {command}"])


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.deduplicate_corpus")
