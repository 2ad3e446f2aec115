"""Code that the readers of all formats share: the names of the formats, and the step from a record to a document."""

from collections.abc import Iterator
from typing import Any

from data_prep.sources.documents import Document, Dropped, ReadOptions

FILE, JSONL, JSONL_GZ, JSONL_ZST, PARQUET, DATASET = "file", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet", "dataset"
UNMEASURED = {JSONL_GZ, JSONL_ZST, DATASET}  # the readers of these cannot tell how much of `Piece.size` they have read
_SHOWN_KEYS = 8

Records = Iterator[Document | Dropped]


def document_of_row(row: Any, source: str, options: ReadOptions, *, input_bytes: int, place: str) -> Document | Dropped:
    """Return the document in a record, or a `Dropped` if the record has no valid text.

    Args:
        row: the record, which should be a dict. Its text may be bytes, as in Parquet's binary columns.
        source: the name of the record.
        options: the key of the text.
        input_bytes: how many bytes of the input were read for it.
        place: where the record lies in the file, for the detail of a `Dropped`.
    """
    if not isinstance(row, dict):
        return Dropped("no_text_field", source, input_bytes, f"{place}: not an object")
    if options.text_field not in row:
        keys = ", ".join(map(repr, list(row)[:_SHOWN_KEYS]))
        return Dropped("no_text_field", source, input_bytes, f"{place}: no key {options.text_field!r} among {keys}")
    text = row[options.text_field]
    try:
        if isinstance(text, str):
            return Document(text, text.encode("utf-8"), source, input_bytes, row)
        if isinstance(text, bytes):
            return Document(text.decode("utf-8"), text, source, input_bytes, row)
    except UnicodeError as error:  # bytes of another encoding, or a lone surrogate such as "\ud800"
        return Dropped("not_utf8", source, input_bytes, f"{place}: {error}"[:200])
    return Dropped("text_not_a_string", source, input_bytes, f"{place}: {options.text_field!r} is {_kind_of(text)}")


def _kind_of(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
