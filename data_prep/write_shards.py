"""Tokenize a corpus and write it as MDS shards that pipeline.train reads.

1. The corpus is cut into parts, which depend on the input alone, not on the number of workers.
2. With --dedup, workers survey the parts, and one process decides which documents are the first of their kind.
3. With --shuffle_documents, parts are cut of the files in a random order, and workers shuffle the documents of a part.
4. Worker processes write each part by itself; a part that an earlier, killed run finished is reused.
5. The parts' indexes are merged per split, and metadata.json, written last, says that all is there.

The same command on the same input writes the same shards, however many workers it had, whatever computed the ids
(--tokenizer_engine), and however often it was killed.
"""

import argparse
import importlib.metadata
import os
import platform
import re
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.command_line import UserError, exit_on_user_error, raise_if_any
from common.fast_tokens import EngineUnavailable
from common.files import sha256_of_file, write_json
from common.tokenizers import BYTES, Engine, Tokenizer, load_tokenizer
from data_prep.decontaminate import load_benchmark
from data_prep.deduplicate import decide, survey_part, survey_path
from data_prep.document_options import (
    add_document_arguments,
    document_metadata,
    document_options,
    document_problems,
)
from data_prep.documents import Source, add_source_arguments, cut_into_parts, list_sources
from data_prep.encoding import WrongIdsError
from data_prep.filters import add_filter_arguments, apply_preset, filter_options
from data_prep.fim import load_fim_tokenizer
from data_prep.languages import UNKNOWN
from data_prep.packing import WindowShape
from data_prep.part_writer import (
    Part,
    PartOptions,
    PartResult,
    SplitCounts,
    finished_parts,
    write_part,
)
from data_prep.report import REPORT, add_sample, build, count, table
from data_prep.shard_folder import FORMAT_VERSION, Identity, abandon, claim, finish, is_finished, locked
from data_prep.shuffling import PIECES_OF_PART, shuffled
from data_prep.workers import results_of, worker_pool

_MIB = 1 << 20
_MOST_IDS = 1 << 16  # of uint16
_NOT_IDENTITY = ("out", "num_workers", "tokenizer_engine")  # what does not change the bytes that are written
_EXAMPLES = """examples:
  python -m data_prep.write_shards --input ~/src/cpython --extensions .py .c --tokenizer tokenizer.model --out data/code
  python -m data_prep.write_shards --input corpus/*.jsonl.zst --tokenizer bytes --out data/bytes --dedup exact
  python -m data_prep.write_shards --input stack.jsonl --tokenizer tokenizer.model --out data/stack \\
      --filters starcoder --language_field lang --license_field license --licenses mit apache-2.0 \\
      --dedup near --decontaminate humaneval.jsonl

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
    sources = list_sources(arguments.input, extensions=arguments.extensions, piece_bytes=piece_bytes)
    identity = _identity(arguments, tokenizer, sources)
    with locked(arguments.out):
        if is_finished(arguments.out, identity):
            print(f"{arguments.out} is already finished, with the same arguments; nothing to do")
            return
        parts = _cut(sources, part_bytes=arguments.part_bytes, seed=document_options(arguments).shuffle_seed)
        claim(arguments.out, identity, parts)
        started = time.monotonic()
        earlier = finished_parts(parts, arguments.out)
        _announce(identity, n_parts=len(parts), n_earlier=len(earlier))
        try:
            written = _write_parts(parts, arguments, engine=engine, skip=earlier.keys())
        except WrongIdsError:
            abandon(arguments.out)  # documents that were not compared may be wrong, too
            raise
        results = [(earlier | written)[part.index] for part in parts]
        total = _sum_of(results, sources=sources)
        _check_splits(total, arguments)
        report = build([(result.tally, result.samples) for result in (total, *results)])
        write_json(arguments.out / REPORT, report)
        model = None if arguments.tokenizer == BYTES else Path(arguments.tokenizer)
        finish(arguments.out, _metadata(identity, total, tokenizer), parts=parts, tokenizer_model=model)
        n_bytes = sum(result.input_bytes for result in written.values())
        print(_summary(total, out=arguments.out, n_bytes=n_bytes, seconds=time.monotonic() - started))
        print(table(report))


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
    arguments = parser.parse_args(argv)
    if arguments.lookahead is None:
        arguments.lookahead = 32 if arguments.tokenizer == BYTES else 8
    apply_preset(arguments)
    return arguments


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
    if seed is not None:
        pieces = shuffled(pieces, seed=seed)
    n_bytes = sum(piece.size for piece in pieces)
    part_bytes = part_bytes or min(max(n_bytes // 256, 8 * _MIB), 512 * _MIB)
    return [Part(i, tuple(share)) for i, share in enumerate(cut_into_parts(pieces, part_bytes=part_bytes))]


def _announce(identity: Identity, *, n_parts: int, n_earlier: int) -> None:
    n_files, n_bytes = (sum(source[name] for source in identity["sources"]) for name in ("files", "bytes"))
    reused = f", of which {n_earlier} are finished already" if n_earlier else ""
    print(f"{n_files:,} files, {n_bytes / 1e6:,.1f} MB, in {n_parts} parts{reused}; starting workers", flush=True)


def _write_parts(
    parts: Sequence[Part], arguments: argparse.Namespace, *, engine: Engine, skip: Collection[int]
) -> dict[int, PartResult]:
    """Write the parts whose index is not in `skip`; return their results by index."""
    options = PartOptions(
        out=arguments.out.absolute(),
        tokenizer=arguments.tokenizer,
        engine=engine,
        text_field=arguments.text_field,
        shape=WindowShape(arguments.seq_len, arguments.lookahead),
        val_fraction=arguments.val_fraction,
        compression=arguments.compression,
        filters=filter_options(arguments),
        documents=document_options(arguments),
    )
    missing = [part for part in parts if part.index not in skip]
    if not missing:
        return {}
    with worker_pool(min(arguments.num_workers, len(missing))) as (pool, progress):
        reasons: list[Any] = [None] * len(parts)
        if arguments.dedup != "none":
            near = arguments.dedup == "near"
            new = [part for part in parts if not survey_path(part, options.out).exists()]
            surveys = [pool.submit(survey_part, part, options, near) for part in new]
            results_of(surveys, progress, input_bytes=_input_bytes(new), verb="surveying")
            reasons = decide(parts, options.out, near=near)
        futures = [pool.submit(write_part, part, options, reasons[part.index]) for part in missing]
        results = results_of(futures, progress, input_bytes=_input_bytes(missing), verb="writing")
    return dict(zip((part.index for part in missing), results, strict=True))


def _input_bytes(parts: Sequence[Part]) -> int | None:
    """Return how many bytes reading these parts will count, or None if compression hides it."""
    pieces = [piece for part in parts for piece in part.pieces]
    return None if any(piece.is_compressed for piece in pieces) else sum(piece.size for piece in pieces)


def _sum_of(results: Sequence[PartResult], *, sources: Sequence[Source]) -> PartResult:
    total = PartResult(splits={name: SplitCounts() for name in results[0].splits})
    dropped: Counter[str] = Counter()
    for source in sources:
        for folder in source.unreadable:
            dropped["unreadable_folder"] += 1
            total.examples.setdefault("unreadable_folder", folder)
            count(total.tally, language=UNKNOWN, outcome="unreadable_folder", n_bytes=0)
            add_sample(total.samples, rule="unreadable_folder", source=folder, text="")
    for result in results:
        for name, counts in result.splits.items():
            total.splits[name].add(counts)
        dropped.update(result.dropped)
        total.examples = result.examples | total.examples
        total.input_bytes += result.input_bytes
    total.dropped = dict(sorted(dropped.items()))
    return total


def _check_splits(total: PartResult, arguments: argparse.Namespace) -> None:
    """Refuse shards that nothing can be trained or evaluated on, and remove them."""
    n_documents = sum(counts.documents for counts in total.splits.values())
    problem = ""
    if n_documents == 0:
        problem = f"no documents in {' '.join(arguments.input)}; dropped: {_dropped_text(total) or 'none'}"
    for name, counts in total.splits.items():
        if n_documents and counts.windows == 0:
            problem = (
                f"split {name!r} would have no window of {arguments.seq_len} + {arguments.lookahead} tokens "
                f"(it has {counts.documents} documents, {counts.tokens} tokens, in several parts): "
                f"change --val_fraction ({arguments.val_fraction}), lower --seq_len, or add input"
            )
            break
    if problem:
        abandon(arguments.out)
        raise UserError(problem)


def _metadata(identity: Identity, total: PartResult, tokenizer: Tokenizer) -> dict[str, Any]:
    late = ("sources", "arguments")
    packages = ("numpy", "xxhash", "zstandard")
    return {
        **{name: value for name, value in identity.items() if name not in late},
        "splits": {name: asdict(counts) for name, counts in total.splits.items()},
        "dropped": total.dropped,
        **{name: identity[name] for name in late},
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages}
        | tokenizer.versions,
    }


def _dropped_text(total: PartResult) -> str:
    return ", ".join(f"{count:,} {reason} (first: {total.examples[reason]})" for reason, count in total.dropped.items())


def _summary(total: PartResult, *, out: Path, n_bytes: int, seconds: float) -> str:
    lines = [f"{out} is finished: {n_bytes / 1e6:,.1f} MB read in {seconds:.1f} s, {n_bytes / 1e6 / seconds:.1f} MB/s"]
    for name, counts in total.splits.items():
        lines.append(
            f"  {name:<8}{counts.documents:>12,} documents {counts.tokens:>16,} tokens {counts.windows:>12,} windows"
            f"   {counts.bytes / max(1, counts.tokens):.2f} bytes/token, {counts.tail_tokens:,} tokens left over"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    exit_on_user_error(main, program="write_shards")
