"""The pieces of the input, from the sources that the user named, in an order that depends on the sources alone.

1. `list_source` lists a source tree, a file, a data set or standard input as pieces. Plain jsonl is cut by bytes,
   Parquet by row groups, and a data set by its shards; other files are one piece each.
2. `cut_into_parts` groups consecutive pieces into parts, the unit of parallel work and of restarts. It does not depend
   on the workers, so any number of them, on any machine, work on the same parts.
"""

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from common.command_line import UserError
from data_prep.sources.documents import Dropped, Piece, Selection
from data_prep.sources.huggingface import PREFIX, cut_shards
from data_prep.sources.records import DATASET, FILE, JSONL, JSONL_GZ, JSONL_ZST, PARQUET
from data_prep.sources.standard_input import STDIN
from data_prep.sources.trees import UNREADABLE_FOLDER, walk

_EXTENSIONS = """.c .cc .clj .cpp .cs .cu .cuh .cxx .dart .erl .ex .exs .f90 .go .h .hh .hpp .hs .hxx .java .jl .js .jsx
    .kt .lua .m .ml .mli .mm .php .pl .pm .proto .ps1 .py .pyi .pyx .r .R .rb .rs .scala .sh .sql .swift .ts .tsx .vue
    .zig"""
CODE_EXTENSIONS = tuple(_EXTENSIONS.split())
UNCUT = 1 << 62  # piece_bytes that cut nothing


@dataclass(frozen=True)
class ListedSource:
    """A source with its pieces."""

    path: str
    """The path or name as the user gave it."""
    selection: Selection
    pieces: tuple[Piece, ...]
    skipped: tuple[Dropped, ...] = ()
    """Files and folders of the source that cannot be read."""
    fingerprint: str = ""
    """Changes with the content of a data set, whose files are not listed; empty for other sources."""

    def summary(self) -> dict[str, str | int | float | list[str]]:
        """Return the entry of metadata.json: the path, the number of files, and their bytes.

        A data set has its number of shards, 0 bytes, and its fingerprint. A source of a mixture also
        has its name, weight and languages.
        """
        files = len({piece.path for piece in self.pieces})
        size = sum(piece.size for piece in self.pieces)
        summary: dict[str, str | int | float | list[str]] = {"path": self.path, "files": files, "bytes": size}
        if self.fingerprint:
            summary |= {"files": len(self.pieces), "bytes": 0, "fingerprint": self.fingerprint}
        if self.selection != Selection(self.path):
            selection = self.selection
            summary |= {"name": selection.name, "weight": selection.weight, "languages": list(selection.languages)}
        return summary


def list_source(
    path: str,
    *,
    selection: Selection | None = None,
    extensions: Sequence[str] = CODE_EXTENSIONS,
    exclude: Sequence[str] = (),
    piece_bytes: int = UNCUT,
    stdin: tuple[str, int] | None = None,
) -> ListedSource:
    """Return a source, listed in pieces of about `piece_bytes`.

    Args:
        path: the path or name as the user gave it.
        selection: which of its documents are wanted; if None, all of them, under the name `path`.
        extensions: extensions of the files to read in a folder.
        exclude: files and folders to leave out, as patterns of a .gitignore in the folder.
        piece_bytes: size of the pieces, for formats that can be cut.
        stdin: path and size of the copy of standard input.

    Raises:
        UserError: the source does not exist, or holds nothing to read.
    """
    selection = selection or Selection(path)
    if path == STDIN:
        if stdin is None:
            raise ValueError("standard input must be copied to a file first")
        return ListedSource(path, selection, tuple(_by_bytes(*stdin, piece_bytes=piece_bytes, selection=selection)))
    if path.startswith(PREFIX):
        shards, fingerprint = cut_shards(path, selection=selection)
        return ListedSource(path, selection, tuple(shards), fingerprint=fingerprint)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not a local path" if "://" in path else "does not exist"
        raise UserError(
            f"input {path!r} {what}; give a folder, a file, a data set {PREFIX}NAME, or - for standard input"
        ) from error
    except OSError as error:
        raise UserError(f"input {path!r} cannot be read: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        return ListedSource(path, selection, tuple(_pieces_of_file(path, status.st_size, piece_bytes, selection)))
    if not stat.S_ISDIR(status.st_mode):  # workers and a continued run could not read it again
        raise UserError(f"input {path!r} is a pipe or a device; give a file, or - and pipe jsonl into standard input")
    files, skipped, others = walk(path, extensions=extensions, exclude=exclude)
    pieces = [piece for name, size in files for piece in _pieces_of_file(name, size, piece_bytes, selection)]
    if not pieces:
        for folder in skipped:
            if folder.reason == UNREADABLE_FOLDER:
                raise UserError(f"input {path!r} holds nothing that can be read ({folder.source}: {folder.detail})")
        others.update(record.reason for record in skipped)
        found = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in others.most_common(5))
        raise UserError(
            f"input {path!r} holds no file with the extensions {_shortened(extensions)}"
            f" (it holds: {found or 'no files'}); name others with --extensions"
        )
    return ListedSource(path, selection, tuple(pieces), tuple(skipped))


def cut_into_parts(pieces: Sequence[Piece], *, part_bytes: int) -> list[list[Piece]]:
    """Group consecutive pieces into parts.

    All pieces of a part have the same weight, since a part is read as a whole as often as the weight asks for. A part
    has at least `part_bytes` bytes, counted as often as they are read, except for the last part of each weight. A shard
    of a data set whose size is unknown ends its part.
    """
    parts: list[list[Piece]] = []
    for weight, equals in itertools.groupby(pieces, key=lambda piece: piece.selection.weight):
        room = 0.0
        for piece in equals:
            if room <= 0:
                parts.append([])
                room = part_bytes / max(1, weight)
            parts[-1].append(piece)
            room -= part_bytes if piece.format == DATASET and piece.size == 0 else piece.size
    return parts


def _shortened(extensions: Sequence[str]) -> str:
    return " ".join(extensions[:8]) + (f" and {len(extensions) - 8} more" if len(extensions) > 8 else "")


def _format_of(path: str) -> str:
    return next((suffix for suffix in (JSONL, JSONL_GZ, JSONL_ZST, PARQUET) if path.endswith(suffix)), FILE)


def _pieces_of_file(path: str, size: int, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    format_ = _format_of(path)
    if format_ == JSONL:
        return _by_bytes(path, size, piece_bytes=piece_bytes, selection=selection)
    if format_ == PARQUET:
        from data_prep.sources.parquet import cut_row_groups  # late, because pyarrow is slow to import

        return cut_row_groups(path, size=size, piece_bytes=piece_bytes, selection=selection)
    return iter([Piece(format_, path, 0, size, size, selection)])


def _by_bytes(path: str, size: int, *, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    for start in range(0, max(size, 1), piece_bytes):  # an empty file is one piece
        stop = min(start + piece_bytes, size)
        yield Piece(JSONL, path, start, stop, stop - start, selection)
