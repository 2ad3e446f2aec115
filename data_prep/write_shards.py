"""Tokenize a corpus and write it as MDS shards that pipeline.train reads.

1. The corpus is cut into parts, which depend on the input alone, not on the number of workers.
2. With --dedup, workers survey the parts, and one process decides which documents are the first of their kind.
3. With --shuffle_documents, parts are cut of the files in a random order, and workers shuffle the documents of a part.
4. Worker processes write each part by itself; a part that an earlier, killed run finished is reused.
5. The parts' indexes are merged per split, and metadata.json, written last, says that all is there.

The same command on the same input writes the same shards, however many workers it had, whatever computed the ids
(--tokenizer_engine), and however often it was killed.

On many machines that see one folder, each runs the same command with a share of the parts, --part 1/8 to --part 8/8, in
any order, and merge_shards does step 5 when all are done. With --dedup, each first runs it with --survey_only, too. The
shards are those of one run without --part.

With --out s3://bucket/prefix all of that happens in --work_dir, and then upload_shards copies it, metadata.json last.
"""

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import UserError, exit_on_user_error
from common.fast_tokens import EngineUnavailable
from common.files import sha256_of_file
from common.s3 import S3Path
from common.tokenizers import BYTES, Engine, Tokenizer, load_tokenizer
from data_prep.dedup.survey import decide, decided, decision_path, survey_part, survey_path
from data_prep.filters.decisions import Reasons, n_readings
from data_prep.filters.options import filter_options
from data_prep.merge_shards import facts_of, merge
from data_prep.shards.folder import (
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
from data_prep.shards.part_writer import WORK_FOLDER, Part, PartOptions, PartResult, finished_parts, write_part
from data_prep.sources.documents import Piece, ReadOptions
from data_prep.sources.listing import ListedSource, cut_into_parts, read_options, sources_of
from data_prep.sources.records import UNMEASURED
from data_prep.tokens.encoding import WrongIdsError
from data_prep.tokens.fim import load_fim_tokenizer
from data_prep.tokens.options import document_metadata, document_options
from data_prep.tokens.packing import WindowShape
from data_prep.tokens.shuffling import PIECES_OF_PART, shuffled
from data_prep.upload_shards import refuse_others, upload
from data_prep.workers import results_of, worker_pool
from data_prep.write_arguments import parse

_MIB = 1 << 20
_MOST_IDS = 1 << 16  # of uint16
# What does not change the bytes that are written.
_NOT_IDENTITY = ("out", "work_dir", "remote", "num_workers", "tokenizer_engine", "strict", "part", "survey_only")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments, the input or the output folder do not allow it; the message says which and why.
    """
    arguments = parse(argv, description=__doc__)
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
    remote: S3Path | None = arguments.remote
    if remote is not None:
        refuse_others(remote)
    with locked(arguments.out, None if share.is_whole else share.of(parts)):
        if is_finished(remote or arguments.out, identity):
            print(f"{remote or arguments.out} is already finished, with the same arguments; nothing to do")
            return
        if not is_finished(arguments.out, identity):
            _write(parts, arguments, identity, facts=facts_of(sources, tokenizer), engine=engine)
        if remote is not None:
            upload(arguments.out, remote)


def _write(
    parts: Sequence[Part],
    arguments: argparse.Namespace,
    identity: Identity,
    *,
    facts: Mapping[str, Any],
    engine: Engine,
) -> None:
    """Write this run's share into a folder that it holds; finish the folder, if the share is all there is."""
    out, share = arguments.out, arguments.part
    model = None if arguments.tokenizer == BYTES else Path(arguments.tokenizer)
    claim(out, identity, parts, share=share, tokenizer_model=model, facts=facts)
    try:
        _write_share(parts, arguments, engine=engine)
    except WrongIdsError as error:  # documents that were not compared may be wrong, too
        if share.is_whole:
            abandon(out)
        else:
            spoil(out, str(error))
        raise
    if share.is_whole and not arguments.survey_only:
        merge(out)


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


def _identity(arguments: argparse.Namespace, tokenizer: Tokenizer, sources: Sequence[ListedSource]) -> Identity:
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


def _cut(sources: Sequence[ListedSource], *, part_bytes: int | None, seed: int | None) -> list[Part]:
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
    if arguments.survey_only:
        print(f"{named}surveyed in {seconds:.1f} s")
    else:
        print(f"{named}written: {n_bytes / 1e6:,.1f} MB read in {seconds:.1f} s, {n_bytes / 1e6 / seconds:.1f} MB/s")


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
        reasons: dict[int, Reasons] = {}
        if arguments.dedup != "none":
            near = arguments.dedup == "near"
            new = [part for part in mine if not survey_path(part, options.out).exists()]
            surveys = [pool.submit(survey_part, part, options, near) for part in new]
            results_of(surveys, progress, input_bytes=_input_bytes(new, lambda piece: 1), verb="surveying")
            _decide_if_surveyed(parts, options.out, near=near, is_needed=not arguments.survey_only)
            if arguments.survey_only:
                return {}
            reasons = {part.index: decided(part, options.out) for part in missing}
        futures = [pool.submit(write_part, part, options, reasons.get(part.index)) for part in missing]
        results = results_of(futures, progress, input_bytes=_input_bytes(missing, n_readings), verb="writing")
    return dict(zip((part.index for part in missing), results, strict=True))


def _decide_if_surveyed(parts: Sequence[Part], out: Path, *, near: bool, is_needed: bool) -> None:
    """Decide about duplicates once all parts are surveyed, unless another share has.

    Raises:
        UserError: the decision is needed, and parts are not surveyed.
    """
    absent = [part.index for part in parts if not survey_path(part, out).exists()]
    if absent and is_needed:
        raise UserError(
            f"{len(absent)} of {len(parts)} parts are not surveyed; first run it with --survey_only and --part "
            f"{shares_with(out, absent)}"
        )
    if not absent and not all(decision_path(part, out).exists() for part in parts):
        decide(parts, out, near=near)


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
    exit_on_user_error(main, program="data_prep.write_shards")
