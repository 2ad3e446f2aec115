"""Small inputs for the readers, and the records that they read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.sources.documents import Document, Dropped, ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece


def write_tree(root: Path, *names: str) -> None:
    """Write files whose text is their path below `root`."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def jsonl(*rows: object) -> bytes:
    """Return the rows as lines of JSON."""
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def records_of(path: str | Path, *, piece_bytes: int = 1 << 62, **options: Any) -> list[Document | Dropped]:
    """Return all records of a source, read with these `ReadOptions`."""
    text_field = options.get("text_field", "text")
    pieces = list_source(str(path), extensions=["*"], text_field=text_field, piece_bytes=piece_bytes).pieces
    return [record for piece in pieces for record in read_piece(piece, ReadOptions(**options))]


def texts_of(records: Sequence[Document | Dropped]) -> list[str]:
    """Return the text of each document, and the reason of each `Dropped` in angle brackets."""
    return [record.text if isinstance(record, Document) else f"<{record.reason}>" for record in records]


def byte_of(record: Document | Dropped) -> int:
    """Return the byte of the file that the detail of a `Dropped` names."""
    assert isinstance(record, Dropped)
    return int(record.detail.partition("byte ")[2].split(":")[0])
