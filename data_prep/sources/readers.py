"""The readers, one for each format: from a piece to its documents.

No reader raises because of a file's content. Input that cannot become a document yields a `Dropped`, which names the
byte. The documents before the damage in a file are kept; in Parquet, those after the damaged row group too.

To add a format, add an entry to `_READERS` here, its name to `records`, and how to recognise it to
`formats.recognition`.
"""

from collections.abc import Callable

from common.command_line import UserError
from data_prep.sources.documents import Dropped, Piece, ReadOptions
from data_prep.sources.formats.json_records import read_json_records
from data_prep.sources.formats.whole_files import read_file
from data_prep.sources.records import DATASET, FILE, JSON_FORMATS, PARQUET, Records


class BadInputError(UserError):
    """Some input is not a document, and the options say to end the run then."""


def read_piece(piece: Piece, options: ReadOptions) -> Records:
    """Yield the documents of one piece in order, and a `Dropped` for each part of it that is not a document.

    Raises:
        BadInputError: for the first `Dropped`, if `options` refuse bad input.
    """
    records = _READERS[piece.format](piece, options)
    return records if options.bad_input == "count" else _refusing(records)


def _refusing(records: Records) -> Records:
    for record in records:
        if isinstance(record, Dropped):
            raise BadInputError(
                f"{record.source}: {record.reason} ({record.detail}); repair the file, or omit --strict to count such"
                " input and continue"
            )
        yield record


def _read_parquet(piece: Piece, options: ReadOptions) -> Records:
    from data_prep.sources.formats.parquet import read_row_groups  # late, because pyarrow is slow to import

    return read_row_groups(piece, options)


def _read_dataset(piece: Piece, options: ReadOptions) -> Records:
    from data_prep.sources.huggingface.library import read_shards  # late, because datasets takes seconds to import

    return read_shards(piece, options)


_READERS: dict[str, Callable[[Piece, ReadOptions], Records]] = {
    FILE: read_file,
    PARQUET: _read_parquet,
    DATASET: _read_dataset,
    **dict.fromkeys(JSON_FORMATS, read_json_records),
}
