"""What goes from sources to shards: documents, and pieces of the input that are read by themselves."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Document:
    """One document. `utf8` is `text` as bytes; `input_bytes` is how far reading it moved through its source.

    Where files are read as bytes, `utf8` is what the file holds, whatever it is, and `text` has each byte that is no
    UTF-8 as a lone surrogate (`errors="surrogateescape"`), so that one can be had from the other.

    `row` has what else the record of jsonl, Parquet or a dataset says of it; empty for a file.
    """

    text: str
    utf8: bytes
    source: str
    input_bytes: int
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Dropped:
    """What could not become a document, and the named reason. `detail` says at which byte of the file, and why."""

    reason: str
    source: str
    input_bytes: int
    detail: str = ""


@dataclass(frozen=True)
class ReadOptions:
    """How pieces are read.

    `files_as` is what a file that is a document is read as: as text, or as whatever bytes it holds. `fields` are those
    of a record that the documents' `row` needs; None means all. With `bad_input="refuse"` the first `Dropped` is raised
    as an error.
    """

    text_field: str = "text"
    files_as: Literal["text", "bytes"] = "text"
    fields: tuple[str, ...] | None = None
    bad_input: Literal["count", "refuse"] = "count"


@dataclass(frozen=True)
class Selection:
    """What of a source is wanted, and how often: `weight` copies of each document in one of `languages` (none: all)."""

    name: str
    weight: float = 1.0
    languages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """A share `[start, stop)` of one file, read by itself; `size` is its share of the file's bytes.

    `start` and `stop` count what the format is cut by: bytes of plain jsonl, where a line belongs to the piece it
    starts in; row groups of Parquet; shards of a dataset. What is never cut has 0 and its size.
    """

    format: str
    path: str
    start: int
    stop: int
    size: int
    selection: Selection
