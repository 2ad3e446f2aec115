"""Survey and write the parts of one run of write_shards in worker processes, except those that are finished already."""

import argparse
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import MappingProxyType

from common.command_line import UserError, say
from common.shard_format import TOKENIZER_MODEL
from common.tokenizers import BYTES, Engine
from common.wording import counted
from data_prep.dedup.survey import decide, decided, decision_path, survey_part, survey_path, surveyed_contents
from data_prep.filters.changes import UNKNOWN, ChangedInputError, Fingerprints, times_of
from data_prep.filters.decisions import Reasons, n_readings
from data_prep.filters.options import filter_options
from data_prep.shards.folder import shares_with
from data_prep.shards.part_writer import write_part
from data_prep.shards.parts import (
    WORK_FOLDER,
    Part,
    PartOptions,
    PartResult,
    RunShare,
    fingerprints_path,
    mark_path,
    read_marks,
)
from data_prep.sources.documents import Piece, ReadOptions
from data_prep.sources.options import read_options
from data_prep.sources.records import FILE, JSONL, UNMEASURED
from data_prep.tokens.options import document_options
from data_prep.tokens.packing import WindowShape
from data_prep.workers import ProgressCounter, results_of, worker_pool

_OF_PLAIN_TEXT = (FILE, JSONL)  # formats whose size tells how much text there is
_BYTES_PER_TOKEN = 4  # of code and of text, about


def write_share(parts: Sequence[Part], arguments: argparse.Namespace, *, engine: Engine) -> None:
    """Survey and write the missing parts of this run's share, and print a line before and after.

    Args:
        parts: all parts of the corpus.
        arguments: the command line of write_shards.
        engine: computes the token ids.

    Raises:
        WrongIdsError: the ids of a document are not those of the reference.
        UserError: parts of other shares have to be surveyed first.
    """
    share: RunShare = arguments.part
    mine = share.of(parts)
    earlier, damaged = read_marks(mine, arguments.out)
    for part in mine:
        if part.index in earlier and not fingerprints_path(part, arguments.out).exists():
            del earlier[part.index]
            damaged[part.index] = f"{part.name} does not say what it was written from; it is written again"
    for reason in damaged.values():
        say(f"warning: {reason}")
    n_bytes = sum(piece.size for part in mine for piece in part.pieces)
    n_files = len({piece.path for part in mine for piece in part.pieces})
    prefix = "" if share.is_whole else f"share {share}: "
    reused = f", of which {len(earlier)} are finished already" if earlier else ""
    say(
        f"{prefix}{counted(n_files, 'file')}, {n_bytes / 1e6:,.1f} MB, in {len(mine)} of {len(parts)} parts{reused}; "
        "starting workers",
    )
    if doubt := _doubt_about_val(parts, arguments):
        say(doubt)
    started = time.monotonic()
    written = _write_parts(parts, arguments, engine=engine, finished=earlier.keys())
    n_bytes, elapsed_s = sum(result.input_bytes for result in written.values()), time.monotonic() - started
    if arguments.survey_only:
        say(f"{prefix}surveyed in {elapsed_s:.1f} s")
    else:
        mb = n_bytes / 1e6
        say(f"{prefix}written: {mb:,.1f} MB read in {elapsed_s:.1f} s, {mb / elapsed_s:.1f} MB/s")


def _doubt_about_val(parts: Sequence[Part], arguments: argparse.Namespace) -> str | None:
    """Return a warning if no part is likely to have a window of the val split, which the last step would refuse."""
    if not arguments.val_fraction or any(piece.format not in _OF_PLAIN_TEXT for part in parts for piece in part.pieces):
        return None
    n_bytes = max((sum(piece.size for piece in part.pieces) for part in parts), default=0)
    bytes_per_token = 1 if arguments.tokenizer == BYTES else _BYTES_PER_TOKEN
    expected, needed = n_bytes * arguments.val_fraction / bytes_per_token, arguments.seq_len + arguments.lookahead
    if expected >= needed:
        return None
    return (
        f"warning: val/ may be without a window of {arguments.seq_len} + {arguments.lookahead} tokens, which is "
        f"refused at the end: --val_fraction {arguments.val_fraction} of the largest part, {n_bytes:,} bytes, is "
        f"about {expected:,.0f} tokens; raise --val_fraction or --part_bytes, or lower --seq_len"
    )


def _write_parts(
    parts: Sequence[Part], arguments: argparse.Namespace, *, engine: Engine, finished: Collection[int]
) -> dict[int, PartResult]:
    """Write this share's parts whose index is not in `finished`; return their results by index."""
    options = _part_options(arguments, engine=engine)
    mine = arguments.part.of(parts)
    missing = [part for part in mine if part.index not in finished]
    results: list[PartResult] = []
    with worker_pool(arguments.num_workers) as (pool, progress):
        compared = _refuse_changes(parts, options, pool, progress)
        if missing and arguments.dedup != "none":
            _survey(parts, arguments, options, pool, progress)
        if missing and not arguments.survey_only:
            reasons: dict[int, Reasons] = {}
            contents: dict[int, list[int]] = {}
            if arguments.dedup != "none":
                reasons = {part.index: decided(part, options.out) for part in missing}
                contents = {part.index: surveyed_contents(part, options.out) for part in missing}
            futures = [
                pool.submit(write_part, part, options, reasons.get(part.index), contents.get(part.index))
                for part in missing
            ]
            results = results_of(futures, progress, input_bytes=_input_bytes(missing, n_readings), verb="writing")
            _refuse_changes(parts, options, pool, progress, compared=compared)
    return dict(zip((part.index for part in missing), results, strict=False))


def _survey(
    parts: Sequence[Part],
    arguments: argparse.Namespace,
    options: PartOptions,
    pool: ProcessPoolExecutor,
    progress: ProgressCounter,
) -> None:
    """Survey this share's parts, and decide which documents are duplicates once all parts are surveyed."""
    near = arguments.dedup == "near"
    new = [part for part in arguments.part.of(parts) if not survey_path(part, options.out).exists()]
    surveys = [pool.submit(survey_part, part, options, near) for part in new]
    results_of(surveys, progress, input_bytes=_input_bytes(new, lambda piece: 1), verb="surveying")
    _decide_if_surveyed(parts, options.out, near=near, is_needed=not arguments.survey_only)


def _refuse_changes(
    parts: Sequence[Part],
    options: PartOptions,
    pool: ProcessPoolExecutor,
    progress: ProgressCounter,
    *,
    compared: Mapping[Piece, int] = MappingProxyType({}),
) -> dict[Piece, int]:
    """Compare the input of all finished parts, whichever share wrote them, with the input as it is now.

    Args:
        parts: all parts of the corpus.
        options: the options of all parts.
        pool: reads the pieces whose files have another time than when the part was written.
        progress: the counter of the pool.
        compared: pieces that have been compared by their content already, with the times of their files then.

    Returns:
        Those pieces, and the ones that were compared now.

    Raises:
        ChangedInputError: the content of a piece has changed.
    """
    now_compared = dict(compared)
    futures = []
    for part in parts:
        path = fingerprints_path(part, options.out)
        if not mark_path(part, options.out).exists() or not path.exists():
            continue
        now = times_of(part.pieces)
        in_doubt = Fingerprints(path, part.pieces).in_doubt(now)
        if unread := [i for i in in_doubt if now[i] == UNKNOWN or compared.get(part.pieces[i]) != now[i]]:
            futures.append(pool.submit(_refuse_change, part, path, unread, options.reading))
            now_compared |= {part.pieces[i]: now[i] for i in unread}
    results_of(futures, progress, input_bytes=None, verb="comparing")
    return now_compared


def _refuse_change(part: Part, path: Path, indices: list[int], reading: ReadOptions) -> None:
    if changed := Fingerprints(path, part.pieces).first_changed(indices, reading):
        raise ChangedInputError(
            f"{changed.path} has changed since {part.name} was written from it: from byte {changed.start} it holds"
            " other records; put back the file as it was, or start again with another --out"
        )


def _part_options(arguments: argparse.Namespace, *, engine: Engine) -> PartOptions:
    fields = tuple(name for name in (arguments.language_field, arguments.license_field) if name is not None)
    return PartOptions(
        out=arguments.out.absolute(),
        tokenizer=BYTES
        if arguments.tokenizer == BYTES
        else str(arguments.out.absolute() / WORK_FOLDER / TOKENIZER_MODEL),
        engine=engine,
        reading=read_options(arguments, files_as="bytes" if arguments.tokenizer == BYTES else "text", fields=fields),
        shape=WindowShape(arguments.seq_len, arguments.lookahead),
        val_fraction=arguments.val_fraction,
        compression=arguments.compression,
        filters=filter_options(arguments),
        documents=document_options(arguments),
    )


def _decide_if_surveyed(parts: Sequence[Part], out: Path, *, near: bool, is_needed: bool) -> None:
    """Decide which documents are duplicates, once all parts are surveyed, unless another run has done so.

    Raises:
        UserError: the decision is needed now, but parts are not surveyed.
    """
    unsurveyed = [part.index for part in parts if not survey_path(part, out).exists()]
    if unsurveyed and is_needed:
        raise UserError(
            f"{len(unsurveyed)} of {counted(len(parts), 'part')} not surveyed yet; first run it with --survey_only and "
            f"--part {shares_with(out, unsurveyed)}"
        )
    if not unsurveyed and not all(decision_path(part, out).exists() for part in parts):
        decide(parts, out, near=near)


def _input_bytes(parts: Sequence[Part], n_readings: Callable[[Piece], int]) -> int | None:
    """Return the bytes of all readings of these parts; None if a format does not report bytes while it is read."""
    pieces = [piece for part in parts for piece in part.pieces]
    if any(piece.format in UNMEASURED for piece in pieces):
        return None
    return sum(piece.size * n_readings(piece) for piece in pieces)
