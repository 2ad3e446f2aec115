"""Code that the readers of all formats share: the names of the formats, and the step from a record to a document."""

import functools
from collections.abc import Iterator
from typing import Any

from common.wording import meant, shortened
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions

FILE, PARQUET, DATASET = "file", ".parquet", "dataset"
JSONL, JSONL_GZ, JSONL_ZST = ".jsonl", ".jsonl.gz", ".jsonl.zst"
JSON_ARRAY, JSON_ARRAY_GZ, JSON_ARRAY_ZST = "array", "array.gz", "array.zst"  # a file that is one JSON array of records
JSON_FORMATS = (JSONL, JSONL_GZ, JSONL_ZST, JSON_ARRAY, JSON_ARRAY_GZ, JSON_ARRAY_ZST)
UNMEASURED = {JSONL_GZ, JSONL_ZST, JSON_ARRAY_GZ, JSON_ARRAY_ZST, DATASET}
"""The formats whose readers cannot tell how much of `Piece.size` they have read."""
WHOLE = 1 << 62
"""`Piece.stop` of a file that is read to its end, whatever its length."""
MOST_RECORD_BYTES = 64 << 20
"""The largest record, as it stands in its file. A larger one is counted as `TOO_LARGE`, and is not kept in memory."""
TOO_LARGE = "too_large"
MOST_LEVELS = 500
"""The most lists and objects within each other. Python's limit varies with the caller, so two readings could differ."""
_SHOWN_KEYS = 8
_LONGEST_KEY = 80  # characters of a key that a message shows

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
        return no_text_field(list(row), source, options, input_bytes=input_bytes, place=place)
    text = row[options.text_field]
    if is_deep(row):
        return too_deep_record(source, input_bytes, place=place)
    try:
        if isinstance(text, str):
            return Document(text, text.encode("utf-8"), source, input_bytes, row)
        if isinstance(text, bytes):
            return Document(text.decode("utf-8"), text, source, input_bytes, row)
    except UnicodeError as error:  # bytes of another encoding, or a lone surrogate such as "\ud800"
        return Dropped("not_utf8", source, input_bytes, f"{place}: {error}"[:200])
    return Dropped("text_not_a_string", source, input_bytes, f"{place}: {options.text_field!r} is {_kind_of(text)}")


def no_text_field(
    keys: list[str], source: str, options: ReadOptions, *, input_bytes: int, place: str, documents: int = 1
) -> Dropped:
    """Return the `Dropped` for records with these keys only."""
    shown = ", ".join(shortened(repr(key), most=_LONGEST_KEY) for key in keys[:_SHOWN_KEYS])
    near = _meant(options.text_field, tuple(key for key in keys if len(key) <= _LONGEST_KEY))
    detail = f"{place}: no key {options.text_field!r} among {shown}{near}"
    return Dropped("no_text_field", source, input_bytes, detail, documents)


def is_deep(value: Any) -> bool:
    """Return whether a value has more than `MOST_LEVELS` lists and objects within each other."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [item for items in inner for item in items if isinstance(item, dict | list)]
        if not level:
            return False
    return True


@functools.lru_cache  # records without the key are often many, and have the same keys
def _meant(name: str, keys: tuple[str, ...]) -> str:
    return meant(name, map(str, keys))


def too_large_record(source: str, n_bytes: int, *, place: str) -> Dropped:
    """Return the `Dropped` for a record that is not read because of its size."""
    return Dropped(TOO_LARGE, source, n_bytes, f"{place}: the record has more than {MOST_RECORD_BYTES:,} bytes")


def too_deep_record(source: str, n_bytes: int, *, place: str) -> Dropped:
    """Return the `Dropped` for a record that is nested too deeply."""
    return Dropped("too_deep", source, n_bytes, f"{place}: more than {MOST_LEVELS} lists and objects within each other")


def unreadable(piece: Piece, error: OSError) -> Dropped:
    """Return the `Dropped` for a piece whose file cannot be read."""
    return Dropped("unreadable", piece.path, piece.size, f"byte {piece.start}: {error.strerror or error}")


def _kind_of(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"
