"""Sources to documents, in an order that depends on the sources alone.

1. `list_sources` turns what the user named (source trees, text files, `.jsonl[.gz|.zst]`) into `Piece`s: runs of
   bytes of one file that are read by themselves. Only plain jsonl is ever cut; its pieces are byte ranges.
2. `cut_into_parts` groups consecutive pieces into parts, the unit of parallel work and of restart. It knows nothing
   of workers, so any number of them, on any machine, see the same parts.
3. `read_piece` yields a `Document` or a `Dropped` for every document, never raising for what a file holds.

A further format is one entry in `_READERS`, and one in `_format_of`; its `start` and `stop` may count rows.
"""

import argparse
import gzip
import io
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import zstandard

from common.command_line import UserError

_EXTENSIONS = """.c .cc .clj .cpp .cs .cu .cuh .cxx .dart .erl .ex .exs .f90 .go .h .hh .hpp .hs .hxx .java .jl .js .jsx
    .kt .lua .m .ml .mli .mm .php .pl .pm .proto .ps1 .py .pyi .pyx .r .R .rb .rs .scala .sh .sql .swift .ts .tsx .vue
    .zig"""
_SKIPPED = ".git .hg .mypy_cache .ruff_cache .svn .tox .venv __pycache__ node_modules site-packages venv"
CODE_EXTENSIONS = tuple(_EXTENSIONS.split())
SKIPPED_FOLDERS = frozenset(_SKIPPED.split())
_DECOMPRESSION_ERRORS = (EOFError, zlib.error, zstandard.ZstdError, gzip.BadGzipFile)


@dataclass(frozen=True)
class Document:
    """One document. `utf8` is `text` as bytes; `input_bytes` is how far reading it moved through its source.

    `row` is the jsonl record that it came from, for what the record says of it; empty for a file.
    """

    text: str
    utf8: bytes
    source: str
    input_bytes: int
    row: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Dropped:
    """What could not become a document, and the named reason."""

    reason: str
    source: str
    input_bytes: int


@dataclass(frozen=True)
class Piece:
    """Bytes `[start, stop)` of one file, read by themselves; a jsonl line belongs to the piece it starts in."""

    format: str
    path: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def is_compressed(self) -> bool:
        return self.format in (".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class Source:
    """One path as the user gave it, with the pieces it holds. `unreadable` lists folders that could not be listed."""

    path: str
    pieces: tuple[Piece, ...]
    unreadable: tuple[str, ...] = ()

    def summary(self) -> dict[str, str | int]:
        """Return the path, its number of files and their bytes, as metadata.json has them."""
        files = len({piece.path for piece in self.pieces})
        return {"path": self.path, "files": files, "bytes": sum(piece.size for piece in self.pieces)}


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the corpus is: `--input`, `--extensions`, `--text_field`."""
    group = parser.add_argument_group("corpus")
    group.add_argument(
        "--input",
        nargs="+",
        required=True,
        metavar="SRC",
        help="source trees, text files, or .jsonl, .jsonl.gz, .jsonl.zst files, read in this order",
    )
    group.add_argument(
        "--extensions",
        nargs="+",
        default=list(CODE_EXTENSIONS),
        metavar="EXT",
        help="files of a folder to read, e.g. .py .md .jsonl.zst (default: those of common programming languages)",
    )
    group.add_argument(
        "--text_field", default="text", metavar="NAME", help="jsonl key of the text (default: %(default)s)"
    )


def list_sources(paths: Sequence[str], *, extensions: Sequence[str], piece_bytes: int = 1 << 62) -> list[Source]:
    """Return the sources that `paths` name, plain jsonl cut into pieces of `piece_bytes`.

    Raises:
        UserError: a path does not exist, or a folder holds no file of these extensions.
    """
    suffixes = tuple(extension if extension.startswith(".") else f".{extension}" for extension in extensions)
    return [_list_source(path, suffixes=suffixes, piece_bytes=piece_bytes) for path in paths]


def cut_into_parts(pieces: Sequence[Piece], *, part_bytes: int) -> list[list[Piece]]:
    """Group consecutive pieces into parts of at least `part_bytes` each, but for the last."""
    parts: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            parts.append([])
            room = part_bytes
        parts[-1].append(piece)
        room -= piece.size
    return parts


def read_piece(piece: Piece, *, text_field: str) -> Iterator[Document | Dropped]:
    """Yield the documents of one piece in their order, and a `Dropped` for each that is none."""
    return _READERS[piece.format](piece, text_field)


def _list_source(path: str, *, suffixes: tuple[str, ...], piece_bytes: int) -> Source:
    if Path(path).is_dir():
        return _list_tree(path, suffixes=suffixes, piece_bytes=piece_bytes)
    if not Path(path).is_file():
        raise UserError(f"input {path!r} does not exist; give a folder, a text file or a .jsonl[.gz|.zst] file")
    return Source(path, tuple(_pieces_of_file(path, size=Path(path).stat().st_size, piece_bytes=piece_bytes)))


def _list_tree(root: str, *, suffixes: tuple[str, ...], piece_bytes: int) -> Source:
    pieces: list[Piece] = []
    unreadable: list[str] = []
    others: Counter[str] = Counter()
    for folder, subfolders, names in os.walk(root, onerror=lambda error: unreadable.append(str(error.filename))):
        subfolders[:] = sorted(set(subfolders) - SKIPPED_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_symlink() or not path.is_file():
                continue
            if not name.endswith(suffixes):
                others["".join(path.suffixes[-2:])] += 1
                continue
            pieces += _pieces_of_file(str(path), size=path.stat().st_size, piece_bytes=piece_bytes)
    if not pieces:
        found = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in others.most_common(5))
        raise UserError(
            f"input {root!r} holds no file with the extensions {_shortened(suffixes)}"
            f" (it holds: {found or 'no files'}); name others with --extensions"
        )
    return Source(root, tuple(pieces), tuple(unreadable))


def _shortened(suffixes: tuple[str, ...]) -> str:
    return " ".join(suffixes[:8]) + (f" and {len(suffixes) - 8} more" if len(suffixes) > 8 else "")


def _format_of(path: str) -> str:
    for suffix in (".jsonl", ".jsonl.gz", ".jsonl.zst"):
        if path.endswith(suffix):
            return suffix
    return "text"


def _pieces_of_file(path: str, *, size: int, piece_bytes: int) -> Iterator[Piece]:
    format_ = _format_of(path)
    step = piece_bytes if format_ == ".jsonl" else max(size, 1)
    for start in range(0, max(size, 1), step):  # an empty file is a piece too: it is counted as dropped
        yield Piece(format_, path, start, min(start + step, size))


def _read_text(piece: Piece, text_field: str) -> Iterator[Document | Dropped]:
    """A whole file as one document; line ends and a byte order mark stay as they are."""
    try:
        with open(piece.path, "rb", buffering=0) as file:  # many small files: a Path costs more than the reading
            utf8 = file.readall()
    except OSError:
        yield Dropped("unreadable", piece.path, piece.size)
        return
    if b"\0" in utf8:
        yield Dropped("binary", piece.path, piece.size)
        return
    try:
        yield Document(utf8.decode("utf-8"), utf8, piece.path, piece.size)
    except UnicodeDecodeError:
        yield Dropped("not_utf8", piece.path, piece.size)


def _read_jsonl(piece: Piece, text_field: str) -> Iterator[Document | Dropped]:
    try:
        with Path(piece.path).open("rb") as file:
            yield from _documents_of_lines(_lines_of_range(file, piece), piece, text_field)
    except OSError:
        yield Dropped("unreadable", piece.path, piece.size)


def _read_compressed_jsonl(piece: Piece, text_field: str) -> Iterator[Document | Dropped]:
    try:
        with Path(piece.path).open("rb") as file:
            yield from _documents_of_lines(_decompressed_lines(file, piece.format), piece, text_field)
    except _DECOMPRESSION_ERRORS:  # truncated or not of this format: what came before it stays
        yield Dropped("corrupt_archive", piece.path, 0)
    except OSError:
        yield Dropped("unreadable", piece.path, 0)


def _decompressed_lines(file: IO[bytes], format_: str) -> Iterable[bytes]:
    if format_ == ".jsonl.gz":
        return io.BufferedReader(gzip.GzipFile(fileobj=file))
    return _lines_of_chunks(_zst_chunks(file))


def _zst_chunks(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress every frame (corpora are often many in one file), of windows up to 2 GiB.

    Raises:
        EOFError: the file ends within a frame. zstandard's own stream_reader says nothing then.
    """
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    frame = None
    while data := file.read(1 << 17):
        while data:
            frame = frame or decompressor.decompressobj()
            yield frame.decompress(data)
            data = frame.unused_data
            if frame.eof:
                frame = None
    if frame is not None:
        raise EOFError


def _lines_of_chunks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    yield rest


def _lines_of_range(file: IO[bytes], piece: Piece) -> Iterator[bytes]:
    if piece.start > 0:
        file.seek(piece.start - 1)
        file.readline()  # the rest of a line that started in the piece before
    while file.tell() < piece.stop:
        yield file.readline()


def _documents_of_lines(lines: Iterable[bytes], piece: Piece, text_field: str) -> Iterator[Document | Dropped]:
    for number, line in enumerate(lines, start=1):
        where = f"{piece.path}:{number}" if piece.start == 0 else f"{piece.path}:byte {piece.start} + line {number}"
        if line.strip():
            yield _document_of_line(line, where, text_field)


def _document_of_line(line: bytes, source: str, text_field: str) -> Document | Dropped:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return Dropped("bad_json", source, len(line))
    if not isinstance(row, dict) or text_field not in row:
        return Dropped("no_text_field", source, len(line))
    text = row[text_field]
    if not isinstance(text, str):
        return Dropped("text_not_a_string", source, len(line))
    try:
        return Document(text, text.encode("utf-8"), source, len(line), row)
    except UnicodeEncodeError:  # a lone surrogate, "\ud800": no text in any encoding
        return Dropped("not_utf8", source, len(line))


_READERS: dict[str, Callable[[Piece, str], Iterator[Document | Dropped]]] = {
    "text": _read_text,
    ".jsonl": _read_jsonl,
    ".jsonl.gz": _read_compressed_jsonl,
    ".jsonl.zst": _read_compressed_jsonl,
}
