"""The decision on each record of a part: kept, dropped for a reason, or repeated.

A document of the validation split is dropped if a source before this one, of the same file, keeps it.

A part is read as often as the weight of its source asks for. The first reading yields every record with its decision;
each further reading yields the documents that have one more copy. So the copies of a document lie a whole part apart.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from data_prep.filters.changes import ChangedInputError, ContentHash
from data_prep.filters.digests import digest, is_validation
from data_prep.filters.options import FilterOptions
from data_prep.filters.reasons import IN_VAL, reason_of_selection, reason_to_drop
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions
from data_prep.sources.mixture import copies_of
from data_prep.sources.readers import read_piece
from data_prep.workers import count_progress

Reasons = list[list[str]]  # for each piece of a part, why each of its records is dropped; "" for those that stay


class Decision(NamedTuple):
    """A record of the input, why it is dropped (None: it stays), and the name of its source."""

    record: Document | Dropped
    reason: str | None
    source: str


def n_readings(piece: Piece) -> int:
    """Return how often a piece is read while shards are written: its weight, rounded up."""
    return math.ceil(piece.selection.weight)


def decisions(
    pieces: Sequence[Piece],
    reading: ReadOptions,
    filters: FilterOptions,
    *,
    reasons: Reasons | None = None,
    contents: list[int] | None = None,
    val_fraction: float = 0.0,
) -> Iterator[Decision]:
    """Yield the records of a part with their decisions, and then the further copies of documents.

    Args:
        pieces: the pieces of the part, all of one weight.
        reading: how they are read.
        filters: the filters to apply.
        reasons: the decisions of an earlier survey of the same part; None applies the filters now.
        contents: the hashes of the pieces' contents from an earlier reading, with which this one is compared. If it is
            an empty list, the hashes are appended.
        val_fraction: the fraction of documents in the validation split, which are never repeated.

    Raises:
        ChangedInputError: a piece is not what it was when it was read before.
        BadInputError: a record is not a document, and `reading` refuses such input.
    """
    before = [] if contents is None else contents
    for n_earlier in range(n_readings(pieces[0])):
        for place, piece in enumerate(pieces):
            surveyed = None if reasons is None else reasons[place]
            content = ContentHash(reading)
            for decision in _decisions_of_piece(piece, reading, filters, surveyed):
                content.add(decision.record)
                decision = _once_in_val(decision, piece, filters, val_fraction=val_fraction)
                if n_earlier == 0 or _is_repeated(decision, n_earlier, piece.selection.weight, val_fraction):
                    yield decision
                else:
                    count_progress(input_bytes=decision.record.input_bytes)
            if place == len(before):
                before.append(content.value())
            elif content.value() != before[place]:
                raise _changed(piece, f"it had other records before, of which there are now {content.n_records}")


def _decisions_of_piece(
    piece: Piece, reading: ReadOptions, filters: FilterOptions, surveyed: list[str] | None
) -> Iterator[Decision]:
    selection = piece.selection
    n_records = 0
    for record in read_piece(piece, reading):
        if surveyed is None or isinstance(record, Dropped):
            reason = reason_to_drop(record, selection, filters)
        elif n_records < len(surveyed):
            reason = surveyed[n_records] or None
        else:
            raise _changed(piece, _numbers(surveyed, f"more than {len(surveyed)}"))
        n_records += 1
        yield Decision(record, reason, selection.name)
    if surveyed is not None and n_records != len(surveyed):
        raise _changed(piece, _numbers(surveyed, str(n_records)))


def _once_in_val(decision: Decision, piece: Piece, filters: FilterOptions, *, val_fraction: float) -> Decision:
    """Return the decision; a document of the validation split is dropped if a source before this one keeps it."""
    record = decision.record
    if not piece.earlier or not val_fraction or decision.reason is not None or not isinstance(record, Document):
        return decision
    is_kept_before = any(reason_of_selection(record, selection, filters) is None for selection in piece.earlier)
    if is_kept_before and is_validation(digest(record.utf8), val_fraction=val_fraction):
        return decision._replace(reason=IN_VAL)
    return decision


def _changed(piece: Piece, difference: str) -> ChangedInputError:
    return ChangedInputError(
        f"{piece.path} changed while it was read: from byte {piece.start} {difference}; leave the input unchanged, and"
        " start again with another --out"
    )


def _numbers(surveyed: list[str], n_records: str) -> str:
    return f"it had {len(surveyed)} records when surveyed, and {n_records} when written"


def _is_repeated(decision: Decision, n_earlier: int, weight: float, val_fraction: float) -> bool:
    """Return whether a document has more than `n_earlier` copies."""
    if decision.reason is not None or not isinstance(decision.record, Document):
        return False
    document_digest = digest(decision.record.utf8)
    return copies_of(document_digest, weight=weight) > n_earlier and not is_validation(
        document_digest, val_fraction=val_fraction
    )
