"""What becomes of each document of a part: read, kept or dropped for a reason, and how often it is repeated.

A part is read as often as the weight of its source asks for: first every document comes with its verdict, then, once
more for each further copy, those that stay and are wanted so often. So the copies of a document lie a part apart.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from common.command_line import UserError
from data_prep.filters.languages import language_of
from data_prep.filters.limits import FilterOptions, digest, is_validation, reason_to_drop
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.mixture import copies_of
from data_prep.sources.readers import read_piece
from data_prep.workers import report

OTHER_LANGUAGE, NOT_SAMPLED = "other_language", "not_sampled"
Reasons = list[list[str]]  # of each piece of a part, why each of its records is dropped; "" for those that stay


class ChangedInputError(UserError):
    """A file is not what it was when it was surveyed."""


class Verdict(NamedTuple):
    """A record of the input, why it is dropped (None: it stays), and the name of its source."""

    record: Document | Dropped
    reason: str | None
    source: str


def reason_of(record: Document | Dropped, selection: Selection, filters: FilterOptions) -> str | None:
    """Return why a record is dropped, or None: it is no document, not wanted of its source, or breaks a rule."""
    if isinstance(record, Dropped):
        return record.reason
    languages = selection.languages
    if languages and language_of(record.source, record.row, field=filters.language_field) not in languages:
        return OTHER_LANGUAGE
    if selection.weight < 1 and copies_of(digest(record.utf8), weight=selection.weight) == 0:
        return NOT_SAMPLED
    return reason_to_drop(record, filters)


def n_readings(piece: Piece) -> int:
    """Return how often a piece is read to be written."""
    return math.ceil(piece.selection.weight)


def verdicts(
    pieces: Sequence[Piece],
    reading: ReadOptions,
    filters: FilterOptions,
    *,
    reasons: Reasons | None = None,
    val_fraction: float = 0.0,
) -> Iterator[Verdict]:
    """Yield the records of a part with their verdicts, and then the further copies of documents.

    Args:
        pieces: the part's, of one weight.
        reading: how they are read.
        filters: the rules.
        reasons: what was decided before, by a survey of the same part; None asks the rules.
        val_fraction: the share of documents that come once, being for validation.

    Raises:
        ChangedInputError: a piece has not the number of records that were decided on.
        BadInputError: a record is no document, if `reading` says so.
    """
    for n_earlier in range(n_readings(pieces[0])):
        for place, piece in enumerate(pieces):
            decided = None if reasons is None else reasons[place]
            for verdict in _of_piece(piece, reading, filters, decided):
                if n_earlier == 0 or _is_repeated(verdict, n_earlier, piece.selection.weight, val_fraction):
                    yield verdict
                else:
                    report(input_bytes=verdict.record.input_bytes)


def _of_piece(
    piece: Piece, reading: ReadOptions, filters: FilterOptions, decided: list[str] | None
) -> Iterator[Verdict]:
    selection = piece.selection
    n_records = 0
    for record in read_piece(piece, reading):
        if decided is None or isinstance(record, Dropped):
            reason = reason_of(record, selection, filters)
        elif n_records < len(decided):
            reason = decided[n_records] or None
        else:
            raise _changed(piece, f"more than {len(decided)}", decided)
        n_records += 1
        yield Verdict(record, reason, selection.name)
    if decided is not None and n_records != len(decided):
        raise _changed(piece, str(n_records), decided)


def _changed(piece: Piece, n_records: str, decided: list[str]) -> ChangedInputError:
    return ChangedInputError(
        f"{piece.path} changed while it was read: from byte {piece.start} it had {len(decided)} records when surveyed, "
        f"and {n_records} when written; leave the input alone, and start again with another --out"
    )


def _is_repeated(verdict: Verdict, n_earlier: int, weight: float, val_fraction: float) -> bool:
    """Return whether a document has more than `n_earlier` copies."""
    if verdict.reason is not None or not isinstance(verdict.record, Document):
        return False
    document_digest = digest(verdict.record.utf8)
    return copies_of(document_digest, weight=weight) > n_earlier and not is_validation(
        document_digest, val_fraction=val_fraction
    )
