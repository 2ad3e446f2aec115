"""Documents, and the pieces of the input from which they are read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Document:
    """One document, read from a file or a record."""

    text: str
    """The text. If files are read as bytes, each byte that is not UTF-8 is a lone surrogate ("surrogateescape")."""
    utf8: bytes
    """`text` as UTF-8. If files are read as bytes, the content of the file, whatever it is."""
    source: str
    """The file and, for a record, its line or row."""
    input_bytes: int
    """How many bytes of the input were read for it."""
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The other fields of the record (jsonl, Parquet or a data set); empty for a file."""


@dataclass(frozen=True)
class Dropped:
    """A part of the input that could not become a document."""

    reason: str
    """The name under which it is counted."""
    source: str
    """The file and, for a record, its line or row."""
    input_bytes: int
    """How many bytes of the input were read for it."""
    detail: str = ""
    """The byte of the file, and why."""
    documents: int = 1
    """How many documents it stands for; 1 where that cannot be known."""


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading pieces."""

    text_field: str = "text"
    """The key of a record that holds the text."""
    files_as: Literal["text", "bytes"] = "text"
    """Whether a file that is one document is read as text, or as any bytes."""
    compressed: Literal["drop", "keep"] = "drop"
    """Whether compressed files that hold no records are dropped, or, if files are read as bytes, are documents."""
    fields: tuple[str, ...] | None = None
    """The fields of a record that `Document.row` must have; None means all."""
    bad_input: Literal["count", "refuse"] = "count"
    """Whether input that is not a document is counted, or the first of it is raised as an error."""


@dataclass(frozen=True)
class Selection:
    """The documents of a source that are wanted, and their weight."""

    name: str
    """The name of the source in counts and in metadata.json."""
    weight: float = 1.0
    """The number of copies of each document."""
    languages: tuple[str, ...] = ()
    """The languages to keep; empty means all."""


@dataclass(frozen=True)
class Piece:
    """A range of one file that is read by itself.

    `start` and `stop` count the units by which the format is cut: bytes of plain jsonl (a line belongs to the piece in
    which it starts), row groups of Parquet, shards of a data set. A file that is never cut has 0 and its size.
    """

    format: str
    path: str
    start: int
    stop: int
    size: int
    """The bytes of the file that belong to this piece."""
    selection: Selection
    earlier: tuple[Selection, ...] = field(default=(), repr=False)
    """The selections of the sources before this one that have the same file."""
