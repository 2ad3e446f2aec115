"""The pieces of one file: plain JSON lines are cut by bytes and Parquet by row groups; other files are one piece."""

from collections.abc import Iterator

from data_prep.sources.documents import Piece, Selection
from data_prep.sources.formats.opening import is_url
from data_prep.sources.records import JSONL, PARQUET, WHOLE


def pieces_of_file(path: str, size: int, *, format_: str, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    """Yield the pieces of a file of `size` bytes, each of about `piece_bytes` if its format can be cut.

    A file in another storage is one piece, because each cut takes requests.
    """
    if is_url(path):
        return iter([Piece(format_, path, 0, WHOLE, size, selection)])
    if format_ == JSONL:
        return _by_bytes(path, size, piece_bytes=piece_bytes, selection=selection)
    if format_ == PARQUET:
        from data_prep.sources.formats.parquet import cut_row_groups  # late, because pyarrow is slow to import

        return cut_row_groups(path, size=size, piece_bytes=piece_bytes, selection=selection)
    return iter([Piece(format_, path, 0, size, size, selection)])


def _by_bytes(path: str, size: int, *, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    for start in range(0, max(size, 1), piece_bytes):  # an empty file is one piece
        stop = min(start + piece_bytes, size)
        yield Piece(JSONL, path, start, stop, stop - start, selection)
