"""Tokenize a corpus and write it as MDS shards that pipeline.train reads.

1. The corpus is cut into parts, which depend on the input alone, not on the number of workers.
2. With --dedup, workers survey the parts. Then one process decides which documents are duplicates of earlier ones.
3. With --shuffle_documents, parts are made of files in random order, and workers shuffle the documents within a part.
4. Worker processes write the parts, each by itself. Parts that an earlier, killed run finished are kept.
5. The indexes of the parts are merged for each split. metadata.json, written last, marks the folder as finished.

The same command on the same input always writes the same shards, with any number of workers, with either
--tokenizer_engine, and however often it was killed.

To write on many machines that see one folder, run the same command on each with a share of the parts, --part 1/8 to
--part 8/8, in any order; then run merge_shards, which does step 5. With --dedup, first run each share once with
--survey_only. The shards are those of one run without --part.

With --out s3://bucket/prefix, the shards are written to --work_dir, and then copied there as upload_shards does it.
"""

if not __package__:  # run as a file: its packages lie beside this folder
    __import__("sys").path.insert(0, __import__("os").path.realpath(f"{__file__}/../.."))

from common.endings import exit_on_user_error

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.command_line import UserError, say
from common.s3 import S3Path
from common.sentencepieces.fast_tokens import EngineUnavailable
from common.shard_format import FORMAT_VERSION, METADATA
from common.tokenizers import BYTES, Engine, Tokenizer, load_tokenizer
from data_prep.dedup.survey import NEAR_METHOD
from data_prep.filters.changes import say_finished
from data_prep.shards.folder import claim, is_finished, locked, spoil
from data_prep.shards.identity import Identity, identifying_arguments
from data_prep.shards.merge import merge, plan_facts
from data_prep.shards.parts import WORK_FOLDER, Part, RunShare
from data_prep.shards.upload import refuse_foreign_content, upload
from data_prep.sources.listing import ListedSource, cut_into_parts
from data_prep.sources.options import sources_of
from data_prep.tokens.encoding import WrongIdsError
from data_prep.tokens.fim import load_fim_tokenizer
from data_prep.tokens.options import document_metadata, document_options
from data_prep.tokens.shuffling import PIECES_OF_PART, shuffled
from data_prep.write_arguments import parse
from data_prep.write_parts import write_share

_MIB = 1 << 20
_MAX_VOCAB_SIZE = 1 << 16  # ids are stored as uint16
# Arguments that do not change the written bytes.
_NOT_IDENTITY = ("out", "work_dir", "remote", "num_workers", "tokenizer_engine", "strict", "part", "survey_only")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Raises:
        UserError: the arguments are wrong, or the input or the output folder cannot be used; the message says why.
    """
    arguments = parse(argv, description=__doc__)
    tokenizer, engine = _tokenizer(arguments)
    if tokenizer.vocab_size > _MAX_VOCAB_SIZE:
        raise UserError(
            f"tokenizer {arguments.tokenizer!r} has {tokenizer.vocab_size} ids; shards hold {_MAX_VOCAB_SIZE}"
        )
    piece_bytes = arguments.part_bytes or 8 * _MIB
    if arguments.shuffle_documents:
        piece_bytes = max(1, piece_bytes // PIECES_OF_PART)
    sources = sources_of(
        arguments, work=arguments.out / WORK_FOLDER, metadata=arguments.out / METADATA, piece_bytes=piece_bytes
    )
    identity = _identity(arguments, tokenizer, sources)
    parts = _cut(sources, part_bytes=arguments.part_bytes, seed=document_options(arguments).shuffle_seed)
    share: RunShare = arguments.part
    remote: S3Path | None = arguments.remote
    if remote is not None:
        refuse_foreign_content(remote)
    with locked(arguments.out, None if share.is_whole else share.of(parts)):
        if is_finished(remote or arguments.out, identity):
            pieces = (piece for source in sources for piece in source.pieces)
            say_finished(remote or arguments.out, arguments.out / METADATA, pieces)
            return
        if not is_finished(arguments.out, identity):
            _write(parts, arguments, identity, facts=plan_facts(sources, tokenizer), engine=engine)
        if remote is not None:
            upload(arguments.out, remote)


def _tokenizer(arguments: argparse.Namespace) -> tuple[Tokenizer, Engine]:
    """Return the tokenizer and its engine: the fast one, or SentencePiece if that does not support the model."""
    if arguments.tokenizer != BYTES and arguments.tokenizer_engine == "auto":
        try:
            return _load_tokenizer(arguments, engine="gigatoken"), "gigatoken"
        except EngineUnavailable as reason:
            say(f"tokenizing with sentencepiece, which takes about ten times as long: {reason}")
    return _load_tokenizer(arguments, engine="sentencepiece"), "sentencepiece"


def _load_tokenizer(arguments: argparse.Namespace, *, engine: Engine) -> Tokenizer:
    if arguments.fim_rate:
        return load_fim_tokenizer(arguments.tokenizer, engine=engine).start
    return load_tokenizer(arguments.tokenizer, engine=engine)


def _identity(arguments: argparse.Namespace, tokenizer: Tokenizer, sources: Sequence[ListedSource]) -> Identity:
    return {
        "format_version": FORMAT_VERSION,
        "seq_len": arguments.seq_len,
        "lookahead": arguments.lookahead,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": {name: getattr(tokenizer, name) for name in ("kind", "sha256", "bos_id", "eos_id")},
        **document_metadata(document_options(arguments), tokenizer, name=arguments.tokenizer),
        "sources": [source.summary() for source in sources],
        "arguments": identifying_arguments(arguments, ignored=_NOT_IDENTITY),
        **({"near_method": NEAR_METHOD} if arguments.dedup == "near" else {}),
    }


def _cut(sources: Sequence[ListedSource], *, part_bytes: int | None, seed: int | None) -> list[Part]:
    """Return the parts of the corpus, each of `part_bytes`, or by default of 1/256 of the corpus, 8 to 512 MiB.

    A `seed` shuffles the pieces first, but only among those of the same weight, because a part has one weight.
    """
    pieces = [piece for source in sources for piece in source.pieces]
    if seed is not None:
        pieces = sorted(shuffled(pieces, seed=seed), key=lambda piece: piece.selection.weight)
    n_bytes = sum(piece.size for piece in pieces)
    part_bytes = part_bytes or min(max(n_bytes // 256, 8 * _MIB), 512 * _MIB)
    return [Part(i, tuple(of_part)) for i, of_part in enumerate(cut_into_parts(pieces, part_bytes=part_bytes))]


def _write(
    parts: Sequence[Part],
    arguments: argparse.Namespace,
    identity: Identity,
    *,
    facts: Mapping[str, Any],
    engine: Engine,
) -> None:
    """Write this run's share into a folder that it has locked; also finish the folder if the share is everything."""
    out, share = arguments.out, arguments.part
    model = None if arguments.tokenizer == BYTES else Path(arguments.tokenizer)
    claim(out, identity, parts, share=share, model=model, facts=facts)
    try:
        write_share(parts, arguments, engine=engine)
    except WrongIdsError as error:
        spoil(out, str(error))
        raise
    if identifying_arguments(arguments, ignored=_NOT_IDENTITY) != identity["arguments"]:
        reason = "a file of --decontaminate changed while parts were written; start again with another --out"
        spoil(out, reason)
        raise UserError(reason)
    if share.is_whole and not arguments.survey_only:
        merge(out)


if __name__ == "__main__":
    exit_on_user_error(main, program="data_prep.write_shards")
