"""Tokenize a corpus and write it as MDS shards that pipeline.train reads.

1. The corpus is cut into parts, which depend on the input alone, not on the number of workers.
2. With --dedup, workers survey the parts, and one process decides which documents are the first of their kind.
3. With --shuffle_documents, parts are cut of the files in a random order, and workers shuffle the documents of a part.
4. Worker processes write each part by itself; a part that an earlier, killed run finished is reused.
5. The parts' indexes are merged per split, and metadata.json, written last, says that all is there.

The same command on the same input writes the same shards, however many workers it had, whatever computed the ids
(--tokenizer_engine), and however often it was killed.

On many machines that see one folder, each runs the same command with a share of the parts, --part 1/8 to --part 8/8, in
any order, and merge_shards does step 4 when all are done. With --dedup, each first runs it with --survey_only, too. The
shards are those of one run without --part.
"""

import argparse
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import UserError, exit_on_user_error, raise_if_any
from common.fast_tokens import EngineUnavailable
from common.files import sha256_of_file
from common.tokenizers import BYTES, Engine, Tokenizer, load_tokenizer
from data_prep.decontaminate import load_benchmark
from data_prep.deduplicate import decide, decided, decision_path, survey_part, survey_path
from data_prep.document_options import add_document_arguments, document_metadata, document_options, document_problems
from data_prep.documents import Piece, ReadOptions
from data_prep.encoding import WrongIdsError
from data_prep.filters import add_filter_arguments, apply_preset, filter_options
from data_prep.fim import load_fim_tokenizer
from data_prep.merge_shards import facts_of, merge
from data_prep.packing import WindowShape
from data_prep.part_writer import (
    WORK_FOLDER,
    Part,
    PartOptions,
    PartResult,
    finished_parts,
    write_part,
)
from data_prep.readers import UNMEASURED
from data_prep.shard_folder import (
    FORMAT_VERSION,
    METADATA,
    Identity,
    Share,
    abandon,
    claim,
    is_finished,
    locked,
    shares_with,
    spoil,
)
from data_prep.shuffling import PIECES_OF_PART, shuffled
from data_prep.sources import Source, add_source_arguments, cut_into_parts, read_options, sources_of
from data_prep.standard_input import STDIN
from data_prep.verdicts import n_readings
from data_prep.workers import results_of, worker_pool

_MIB = 1 << 20
_MOST_IDS = 1 << 16  # of uint16
# What does not change the bytes that are written.
_NOT_IDENTITY = ("out", "num_workers", "tokenizer_engine", "strict", "part", "survey_only")
_EXAMPLES = """examples:
  python -m data_prep.write_shards --input ~/src/cpython --extensions .py .c --tokenizer tokenizer.model --out data/code
  python -m data_prep.write_shards --input corpus/*.jsonl.zst --tokenizer bytes --out data/bytes --dedup exact
  python -m data_prep.write_shards --input stack.jsonl --tokenizer tokenizer.model --out data/stack \\
      --filters starcoder --language_field lang --license_field license --licenses mit apache-2.0 \\
      --dedup near --decontaminate humaneval.jsonl

on many machines, as jobs of an array:
  python -m data_prep.write_shards --input corpus --tokenizer bytes --out /shared/bytes --part $SLURM_ARRAY_TASK_ID/8
  python -m data_prep.merge_shards /shared/bytes

A killed run is continued by the same command. A finished folder is left as it is."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments, the input or the output folder do not allow it; the message says which and why.
    """
    arguments = _parse(argv)
    _check(arguments)
    tokenizer, engine = _tokenizer(arguments)
    if tokenizer.vocab_size > _MOST_IDS:
        raise UserError(f"tokenizer {arguments.tokenizer!r} has {tokenizer.vocab_size} ids; shards hold {_MOST_IDS}")
    piece_bytes = arguments.part_bytes or 8 * _MIB
    if arguments.shuffle_documents:
        piece_bytes = max(1, piece_bytes // PIECES_OF_PART)
    sources = sources_of(
        arguments, work=arguments.out / WORK_FOLDER, metadata=arguments.out / METADATA, piece_bytes=piece_bytes
    )
    identity = _identity(arguments, tokenizer, sources)
    parts = _cut(sources, part_bytes=arguments.part_bytes, seed=document_options(arguments).shuffle_seed)
    share: Share = arguments.part
    with locked(arguments.out, None if share.is_whole else share.of(parts)):
        if is_finished(arguments.out, identity):
            print(f"{arguments.out} is already finished, with the same arguments; nothing to do")
            return
        model = None if arguments.tokenizer == BYTES else Path(arguments.tokenizer)
        facts = facts_of(sources, tokenizer)
        claim(arguments.out, identity, parts, share=share, tokenizer_model=model, facts=facts)
        try:
            _write_share(parts, arguments, engine=engine)
        except WrongIdsError as error:  # documents that were not compared may be wrong, too
            if share.is_whole:
                abandon(arguments.out)
            else:
                spoil(arguments.out, str(error))
            raise
        if share.is_whole and not arguments.survey_only:
            merge(arguments.out)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.write_shards",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    group = parser.add_argument_group("shards")
    add = group.add_argument
    add("--tokenizer", required=True, help="a SentencePiece model file, or the word 'bytes'")
    add("--out", required=True, type=Path, metavar="DIR", help="folder to write")
    add("--seq_len", type=int, default=4096, metavar="N", help="positions per window (default: %(default)s)")
    lookahead_help = "tokens by which windows overlap: the most future tokens to train on (default: 8; 32 for bytes)"
    add("--lookahead", type=int, metavar="N", help=lookahead_help)
    val_help = "fraction of documents for val/, chosen by a hash of their text (default: %(default)s)"
    add("--val_fraction", type=float, default=0.005, metavar="F", help=val_help)
    add("--compression", metavar="zstd[:LEVEL]", help="compress the shards (default: not)")
    add_document_arguments(parser)
    add_filter_arguments(parser)
    group = parser.add_argument_group("work")
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    group.add_argument("--num_workers", type=int, default=cpus, metavar="N", help="processes (default: one per CPU)")
    part_help = "input bytes per part, the unit of work and of restart (default: 1/256 of the input, 8 to 512 MiB)"
    engine_help = "what computes the ids, always sentencepiece's (default: gigatoken where it can do the model)"
    group.add_argument("--tokenizer_engine", choices=["auto", "sentencepiece"], default="auto", help=engine_help)
    group.add_argument("--part_bytes", type=int, metavar="N", help=part_help)
    share_help = "write the I-th of N shares of the parts only, beside the runs of the others; then run merge_shards"
    group.add_argument("--part", type=_share_of, default=Share(), metavar="I/N", help=share_help)
    survey_help = "with --dedup and --part: only survey the share, which comes before any share is written"
    group.add_argument("--survey_only", action="store_true", help=survey_help)
    arguments = parser.parse_args(argv)
    if arguments.lookahead is None:
        arguments.lookahead = 32 if arguments.tokenizer == BYTES else 8
    apply_preset(arguments)
    return arguments


def _share_of(text: str) -> Share:
    numbers = re.fullmatch(r"0*([1-9]\d{0,5})/0*([1-9]\d{0,5})", text)
    if numbers is None or int(numbers[1]) > int(numbers[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N, a number from 1 to N and N, such as 3/8")
    return Share(int(numbers[1]), int(numbers[2]))


def _check(arguments: argparse.Namespace) -> None:
    problems = [
        f"--{name} must be at least 1, not {getattr(arguments, name)}"
        for name in ("seq_len", "lookahead", "num_workers", "part_bytes")
        if getattr(arguments, name) is not None and getattr(arguments, name) < 1
    ]
    if not 0 <= arguments.val_fraction < 1:
        problems.append(f"--val_fraction must be at least 0 and less than 1, not {arguments.val_fraction}")
    if arguments.compression and not re.fullmatch(r"zstd(:([1-9]|1\d|2[0-2]))?", arguments.compression):
        problems.append(f"--compression must be zstd, or zstd:1 to zstd:22, not {arguments.compression!r}")
    if arguments.survey_only and arguments.dedup == "none":
        problems.append("--survey_only is for --dedup exact or near; nothing else needs a survey")
    if STDIN in (arguments.input or ()) and not arguments.part.is_whole:
        problems.append("--part cannot share standard input among machines; write it to a .jsonl file first")
    problems += document_problems(arguments)
    if arguments.out.exists() and not arguments.out.is_dir():
        problems.append(f"--out {arguments.out} is a file; give a folder")
    raise_if_any(problems, heading="bad arguments")
    for path in arguments.decontaminate or ():
        load_benchmark(path)


def _tokenizer(arguments: argparse.Namespace) -> tuple[Tokenizer, Engine]:
    """Return the tokenizer and what computes its ids: the fast engine, or SentencePiece where that cannot."""
    if arguments.tokenizer != BYTES and arguments.tokenizer_engine == "auto":
        try:
            return _loaded(arguments, engine="gigatoken"), "gigatoken"
        except EngineUnavailable as reason:
            print(f"tokenizing with sentencepiece, which takes about ten times as long: {reason}")
    return _loaded(arguments, engine="sentencepiece"), "sentencepiece"


def _loaded(arguments: argparse.Namespace, *, engine: Engine) -> Tokenizer:
    if arguments.fim_rate:
        return load_fim_tokenizer(arguments.tokenizer, engine=engine).start
    return load_tokenizer(arguments.tokenizer, engine=engine)


def _identity(arguments: argparse.Namespace, tokenizer: Tokenizer, sources: Sequence[Source]) -> Identity:
    named = {name: value for name, value in vars(arguments).items() if name not in _NOT_IDENTITY}
    if arguments.decontaminate:  # what the files say decides, not their names alone
        named["decontaminate"] = {path: sha256_of_file(Path(path)) for path in arguments.decontaminate}
    return {
        "format_version": FORMAT_VERSION,
        "seq_len": arguments.seq_len,
        "lookahead": arguments.lookahead,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {name: getattr(tokenizer, name) for name in ("kind", "sha256", "bos_id", "eos_id")},
        **document_metadata(document_options(arguments), tokenizer, name=arguments.tokenizer),
        "sources": [source.summary() for source in sources],
        "arguments": named,
    }


def _cut(sources: Sequence[Source], *, part_bytes: int | None, seed: int | None) -> list[Part]:
    pieces = [piece for source in sources for piece in source.pieces]
    if seed is not None:  # among those of its weight, since a part has one
        pieces = sorted(shuffled(pieces, seed=seed), key=lambda piece: piece.selection.weight)
    n_bytes = sum(piece.size for piece in pieces)
    part_bytes = part_bytes or min(max(n_bytes // 256, 8 * _MIB), 512 * _MIB)
    return [Part(i, tuple(share)) for i, share in enumerate(cut_into_parts(pieces, part_bytes=part_bytes))]


def _write_share(parts: Sequence[Part], arguments: argparse.Namespace, *, engine: Engine) -> None:
    """Survey and write what is missing of this run's share, and say so."""
    mine = arguments.part.of(parts)
    earlier = finished_parts(mine, arguments.out)
    n_bytes = sum(piece.size for part in mine for piece in part.pieces)
    n_files = len({piece.path for part in mine for piece in part.pieces})
    named = "" if arguments.part.is_whole else f"share {arguments.part}: "
    reused = f", of which {len(earlier)} are finished already" if earlier else ""
    print(
        f"{named}{n_files:,} files, {n_bytes / 1e6:,.1f} MB, in {len(mine)} of {len(parts)} parts{reused}; "
        "starting workers",
        flush=True,
    )
    started = time.monotonic()
    written = _write_parts(parts, arguments, engine=engine, skip=earlier.keys())
    n_bytes, seconds = sum(result.input_bytes for result in written.values()), time.monotonic() - started
    done = "surveyed" if arguments.survey_only else "written"
    print(f"{named}{done}: {n_bytes / 1e6:,.1f} MB read in {seconds:.1f} s, {n_bytes / 1e6 / seconds:.1f} MB/s")


def _write_parts(
    parts: Sequence[Part], arguments: argparse.Namespace, *, engine: Engine, skip: Collection[int]
) -> dict[int, PartResult]:
    """Write this share's parts whose index is not in `skip`; return their results by index."""
    options = PartOptions(
        out=arguments.out.absolute(),
        tokenizer=arguments.tokenizer,
        engine=engine,
        reading=_reading(arguments),
        shape=WindowShape(arguments.seq_len, arguments.lookahead),
        val_fraction=arguments.val_fraction,
        compression=arguments.compression,
        filters=filter_options(arguments),
        documents=document_options(arguments),
    )
    mine = arguments.part.of(parts)
    missing = [part for part in mine if part.index not in skip]
    if not missing:
        return {}
    with worker_pool(min(arguments.num_workers, len(missing))) as (pool, progress):
        reasons: Mapping[int, Any] = {}
        if arguments.dedup != "none":
            near = arguments.dedup == "near"
            new = [part for part in mine if not survey_path(part, options.out).exists()]
            surveys = [pool.submit(survey_part, part, options, near) for part in new]
            results_of(surveys, progress, input_bytes=_input_bytes(new, lambda piece: 1), verb="surveying")
            absent = [part.index for part in parts if not survey_path(part, options.out).exists()]
            if absent and not arguments.survey_only:
                raise UserError(_unsurveyed_text(absent, n_parts=len(parts), out=arguments.out))
            if not absent and not all(decision_path(part, options.out).exists() for part in parts):
                decide(parts, options.out, near=near)
            if arguments.survey_only:
                return {}
            reasons = {part.index: decided(part, options.out) for part in missing}
        futures = [pool.submit(write_part, part, options, reasons.get(part.index)) for part in missing]
        results = results_of(futures, progress, input_bytes=_input_bytes(missing, n_readings), verb="writing")
    return dict(zip((part.index for part in missing), results, strict=True))


def _unsurveyed_text(absent: Sequence[int], *, n_parts: int, out: Path) -> str:
    return (
        f"{len(absent)} of {n_parts} parts are not surveyed; first run it with --survey_only and --part "
        f"{shares_with(out, absent)}"
    )


def _reading(arguments: argparse.Namespace) -> ReadOptions:
    fields = tuple(name for name in (arguments.language_field, arguments.license_field) if name is not None)
    return read_options(arguments, files_as="bytes" if arguments.tokenizer == BYTES else "text", fields=fields)


def _input_bytes(parts: Sequence[Part], n_readings: Callable[[Piece], int]) -> int | None:
    """Return how many bytes reading these parts so often will count, or None if their formats hide it."""
    pieces = [piece for part in parts for piece in part.pieces]
    if any(piece.format in UNMEASURED for piece in pieces):
        return None
    return sum(piece.size * n_readings(piece) for piece in pieces)


if __name__ == "__main__":
    exit_on_user_error(main, program="write_shards")
