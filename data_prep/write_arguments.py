"""The command line of write_shards: its options, and the checks of their values."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from common.command_line import command_parser, output_text, path_text, raise_if_any, real_number, whole_number
from common.s3 import SCHEME, S3Path, is_remote
from common.tokenizers import BYTES
from data_prep.filters.decontaminate import load_benchmark
from data_prep.filters.options import add_filter_arguments, apply_preset, filter_problems
from data_prep.shards.parts import RunShare
from data_prep.sources.options import add_source_arguments
from data_prep.sources.standard_input import STDIN
from data_prep.tokens.options import add_document_arguments, document_problems
from data_prep.workers import add_workers_argument

_LONGEST_WINDOW = 1 << 29  # tokens: an MDS file has 32-bit offsets, and a token takes up to two columns of uint16
_EXAMPLES = """examples:
  python -m data_prep.write_shards --input ~/src/cpython --extensions .py .c --tokenizer tokenizer.model --out data/code
  python -m data_prep.write_shards --input corpus/*.jsonl.zst --tokenizer bytes --out data/bytes --dedup exact
  python -m data_prep.write_shards --input stack.jsonl --tokenizer tokenizer.model --out data/stack \\
      --filters starcoder --language_field lang --license_field license --licenses mit apache-2.0 \\
      --dedup near --decontaminate humaneval.jsonl
  python -m data_prep.write_shards --input corpus --tokenizer bytes --out s3://bucket/bytes --work_dir data/bytes

on many machines, as jobs of an array:
  python -m data_prep.write_shards --input corpus --tokenizer bytes --out /shared/bytes --part $SLURM_ARRAY_TASK_ID/8
  python -m data_prep.merge_shards /shared/bytes
  python -m data_prep.upload_shards /shared/bytes s3://bucket/bytes       to copy the shards to S3

To continue a killed run, run the same command. A finished folder is not changed."""


def parse(argv: Sequence[str] | None, *, description: str | None) -> argparse.Namespace:
    """Return the arguments, where `out` is the folder on a disk, and `remote` the one in S3 for a copy, or None.

    Raises:
        UserError: arguments are wrong, a file of --decontaminate is not a benchmark, or the bucket cannot be reached.
    """
    arguments = _parser(description).parse_args(argv)
    if arguments.lookahead is None:
        arguments.lookahead = 32 if arguments.tokenizer == BYTES else 8
    apply_preset(arguments)
    arguments.remote = S3Path(arguments.out) if is_remote(arguments.out) else None
    raise_if_any(_problems(arguments), heading="bad arguments")
    if arguments.remote is not None:
        arguments.remote.check_bucket()
        arguments.out = arguments.work_dir
    arguments.out = Path(arguments.out)
    for path in arguments.decontaminate or ():
        load_benchmark(path)
    return arguments


def _parser(description: str | None) -> argparse.ArgumentParser:
    parser = command_parser("data_prep.write_shards", description=description, epilog=_EXAMPLES)
    add_source_arguments(parser)
    group = parser.add_argument_group("shards")
    add = group.add_argument
    add("--tokenizer", required=True, type=path_text, help="a SentencePiece model file, or the word 'bytes'")
    out_help = f"folder to write, or {SCHEME}bucket/prefix for a copy of --work_dir when that is finished"
    add("--out", required=True, type=output_text, metavar="DIR", help=out_help)
    work_help = f"with {SCHEME}: the folder to write first; a killed run continues from its content"
    add("--work_dir", type=output_text, metavar="DIR", help=work_help)
    tokens = whole_number(at_least=1, at_most=_LONGEST_WINDOW)
    length_help = "training positions per window (default: %(default)s)"
    add("--seq_len", type=tokens, default=4096, metavar="N", help=length_help)
    lookahead_help = "tokens by which windows overlap: the most a model can predict ahead (default: 8; 32 for bytes)"
    add("--lookahead", type=tokens, metavar="N", help=lookahead_help)
    val_help = "fraction of documents in val/, chosen by a hash of their text (default: %(default)s)"
    add("--val_fraction", type=real_number(at_least=0, below=1), default=0.005, metavar="F", help=val_help)
    add("--compression", metavar="zstd[:LEVEL]", help="compress the shards (default: no compression)")
    add_document_arguments(parser)
    add_filter_arguments(parser)
    group = parser.add_argument_group("work")
    add_workers_argument(group)
    part_help = "input bytes per part, the unit of work and of restart (default: 1/256 of the input, 8 to 512 MiB)"
    engine_help = (
        "library that computes the ids, which are always the same (default: gigatoken if it supports the model)"
    )
    group.add_argument("--tokenizer_engine", choices=["auto", "sentencepiece"], default="auto", help=engine_help)
    n_bytes = whole_number(at_least=1, at_most=1 << 50)
    group.add_argument("--part_bytes", type=n_bytes, metavar="N", help=part_help)
    share_help = "write only the I-th of N shares of the parts; when all shares are written, run merge_shards"
    group.add_argument("--part", type=_share_of, default=RunShare(), metavar="I/N", help=share_help)
    survey_help = "with --dedup and --part: only survey the share; do so for all shares before any is written"
    group.add_argument("--survey_only", action="store_true", help=survey_help)
    return parser


def _share_of(text: str) -> RunShare:
    numbers = re.fullmatch(r"0*([1-9]\d{0,5})/0*([1-9]\d{0,5})", text)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 3/8")
    return RunShare(int(numbers[1]), int(numbers[2]))


def _problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if arguments.seq_len + arguments.lookahead > _LONGEST_WINDOW:
        problems.append(
            f"--seq_len and --lookahead must be at most {_LONGEST_WINDOW} together, so that a window fits into a shard"
        )
    if arguments.compression and not re.fullmatch(r"zstd(:([1-9]|1\d|2[0-2]))?", arguments.compression):
        problems.append(f"--compression must be zstd, or zstd:1 to zstd:22, not {arguments.compression!r}")
    if arguments.survey_only and arguments.dedup == "none":
        problems.append("--survey_only needs --dedup exact or near; without it there is nothing to survey")
    if STDIN in (arguments.input or ()) and not arguments.part.is_whole:
        problems.append("--part cannot divide standard input among machines; write it to a .jsonl file first")
    problems += document_problems(arguments) + filter_problems(arguments) + _folder_problems(arguments)
    return problems


def _folder_problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if arguments.remote is not None and not arguments.work_dir:
        problems.append(f"--out {arguments.out} needs --work_dir, a folder with enough room that stays after this job")
    if arguments.remote is not None and (arguments.survey_only or not arguments.part.is_whole):
        problems.append(
            "--part and --survey_only need a folder that all machines see: give that as --out, run merge_shards when"
            f" all shares are written, and then upload_shards DIR {arguments.remote}"
        )
    if arguments.work_dir and arguments.remote is None:
        problems.append(f"--work_dir needs --out {SCHEME}bucket/prefix")
    option, folder = ("--out", arguments.out) if arguments.remote is None else ("--work_dir", arguments.work_dir)
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        problems.append(f"{option} {folder} is a file; give a folder")
    return problems
