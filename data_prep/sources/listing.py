"""What the user named to pieces of the input, in an order that depends on the sources alone.

1. `list_source` turns a source tree, a file, a data set or standard input into `Piece`s. Plain jsonl is cut by bytes,
   Parquet by row groups, a data set by its shards; other files are one piece each.
2. `cut_into_parts` groups consecutive pieces into parts, the unit of parallel work and of restart. It knows nothing of
   workers, so any number of them, on any machine, see the same parts.
"""

import argparse
import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.command_line import UserError
from data_prep.sources.documents import Dropped, Piece, ReadOptions, Selection
from data_prep.sources.huggingface import PREFIX, cut_shards
from data_prep.sources.mixture import MIX_SYNTAX, parse_mix
from data_prep.sources.records import DATASET, FILE, JSONL, JSONL_GZ, JSONL_ZST, PARQUET
from data_prep.sources.standard_input import STDIN, kept_input
from data_prep.sources.trees import UNREADABLE_FOLDER, walk

_EXTENSIONS = """.c .cc .clj .cpp .cs .cu .cuh .cxx .dart .erl .ex .exs .f90 .go .h .hh .hpp .hs .hxx .java .jl .js .jsx
    .kt .lua .m .ml .mli .mm .php .pl .pm .proto .ps1 .py .pyi .pyx .r .R .rb .rs .scala .sh .sql .swift .ts .tsx .vue
    .zig"""
CODE_EXTENSIONS = tuple(_EXTENSIONS.split())
_UNCUT = 1 << 62
_INPUT_HELP = (
    f"source trees, files (text, .jsonl[.gz|.zst], .parquet), data sets {PREFIX}PATH_OR_NAME[:CONFIG][@SPLIT] streamed"
    " by Hugging Face's library (split train, unless another is named), or - for jsonl from standard input, which is"
    " copied to a file in the output's work folder first: a run that is continued goes on with that file"
)
_MIX_HELP = (
    f"sources with weights, instead of --input: {MIX_SYNTAX}. Each document comes WEIGHT times: 0.25 keeps a quarter,"
    " chosen by a hash of the text, 2.5 gives two whole epochs and half of a third; #python,c++ reads these languages"
    " alone; what each source came to is in metadata.json, under its name"
)


@dataclass(frozen=True)
class ListedSource:
    """One path as the user gave it, with the pieces it holds, and what was met there and cannot be read.

    `fingerprint` stands for the content of a data set, whose files are not listed.
    """

    path: str
    selection: Selection
    pieces: tuple[Piece, ...]
    skipped: tuple[Dropped, ...] = ()
    fingerprint: str = ""

    def summary(self) -> dict[str, str | int | float | list[str]]:
        """Return the path, its number of files and their bytes, as metadata.json has them; of a data set, its shards.

        What is not weighted has no more than that, and a data set's bytes are not known.
        """
        files = len({piece.path for piece in self.pieces})
        size = sum(piece.size for piece in self.pieces)
        summary: dict[str, str | int | float | list[str]] = {"path": self.path, "files": files, "bytes": size}
        if self.fingerprint:
            summary |= {"files": len(self.pieces), "fingerprint": self.fingerprint}
        if self.selection != Selection(self.path):
            selection = self.selection
            summary |= {"name": selection.name, "weight": selection.weight, "languages": list(selection.languages)}
        return summary


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what the corpus is and how it is read."""
    group = parser.add_argument_group("corpus")
    either = group.add_mutually_exclusive_group(required=True)
    either.add_argument("--input", nargs="+", metavar="SRC", help=f"{_INPUT_HELP}; read in this order")
    either.add_argument("--mix", nargs="+", metavar="MIX", help=_MIX_HELP)
    group.add_argument(
        "--extensions",
        nargs="+",
        default=list(CODE_EXTENSIONS),
        metavar="EXT",
        help="files of a folder to read, e.g. .py .md .jsonl.zst .parquet, or '*' for all"
        " (default: those of common programming languages)",
    )
    exclude_help = (
        "files and folders of a folder to leave out, as a .gitignore in it would: 'build/' '*_pb2.py' '!a.py'"
    )
    group.add_argument("--exclude", nargs="+", default=[], metavar="PATTERN", help=exclude_help)
    field_help = "key of the text in jsonl, its column in Parquet and data sets (default: %(default)s)"
    group.add_argument("--text_field", default="text", metavar="NAME", help=field_help)
    strict_help = "end at the first input that is no document, naming file and byte (default: count it and go on)"
    group.add_argument("--strict", action="store_true", help=strict_help)


def read_options(arguments: argparse.Namespace, **more: str | tuple[str, ...] | None) -> ReadOptions:
    """Return how the options of a parsed command line say to read."""
    bad_input = "refuse" if arguments.strict else "count"
    return ReadOptions(text_field=arguments.text_field, bad_input=bad_input, **more)  # type: ignore[arg-type]


def sources_of(
    arguments: argparse.Namespace, *, work: Path, metadata: Path | None = None, piece_bytes: int = _UNCUT
) -> list[ListedSource]:
    """Return the sources that a parsed command line names, which keeps standard input in `work`.

    Raises:
        UserError: a source does not exist, holds nothing of the kind, or is misspelt.
    """
    wanted = parse_mix(arguments.mix) if arguments.mix else [(path, Selection(path)) for path in arguments.input]
    stdin = kept_input(work, metadata=metadata) if STDIN in (path for path, _ in wanted) else None
    sources = [
        list_source(
            path,
            selection=selection,
            extensions=arguments.extensions,
            exclude=arguments.exclude,
            piece_bytes=piece_bytes,
            stdin=stdin,
        )
        for path, selection in wanted
    ]
    for source in sources if arguments.strict else ():
        for skipped in source.skipped:
            raise UserError(f"{skipped.source}: {skipped.reason} ({skipped.detail}); mend it, or leave out --strict")
    return sources


def list_source(
    path: str,
    *,
    selection: Selection | None = None,
    extensions: Sequence[str] = CODE_EXTENSIONS,
    exclude: Sequence[str] = (),
    piece_bytes: int = _UNCUT,
    stdin: tuple[str, int] | None = None,
) -> ListedSource:
    """Return what `path` holds, in pieces of about `piece_bytes`.

    Args:
        path: as the user gave it.
        selection: what of it is wanted; all of it, under its own name, if not given.
        extensions: of the files of a folder.
        exclude: patterns of a .gitignore, for a folder.
        piece_bytes: what is cut is cut into pieces of this size.
        stdin: path and size of the file that has standard input.

    Raises:
        UserError: it does not exist, or holds nothing to read.
    """
    selection = selection or Selection(path)
    if path == STDIN:
        if stdin is None:
            raise ValueError("standard input must be kept in a file first")
        return ListedSource(path, selection, tuple(_by_bytes(*stdin, piece_bytes=piece_bytes, selection=selection)))
    if path.startswith(PREFIX):
        shards, fingerprint = cut_shards(path, selection=selection)
        return ListedSource(path, selection, tuple(shards), fingerprint=fingerprint)
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not on this machine" if "://" in path else "does not exist"
        raise UserError(
            f"input {path!r} {what}; give a folder, a file, {PREFIX}NAME of a data set, or - for standard input"
        ) from error
    except OSError as error:
        raise UserError(f"input {path!r} cannot be looked at: {error.strerror}") from error
    if stat.S_ISREG(status.st_mode):
        return ListedSource(path, selection, tuple(_pieces_of_file(path, status.st_size, piece_bytes, selection)))
    if not stat.S_ISDIR(status.st_mode):  # workers, and a run that goes on, could not read it again
        raise UserError(f"input {path!r} is a pipe or a device; give a file, or pipe jsonl into - (standard input)")
    files, skipped, others = walk(path, extensions=extensions, exclude=exclude)
    pieces = [piece for name, size in files for piece in _pieces_of_file(name, size, piece_bytes, selection)]
    if not pieces:
        for folder in skipped:
            if folder.reason == UNREADABLE_FOLDER:
                raise UserError(f"input {path!r} holds nothing that may be read ({folder.source}: {folder.detail})")
        others.update(record.reason for record in skipped)
        found = ", ".join(f"{count} {suffix or 'without extension'}" for suffix, count in others.most_common(5))
        raise UserError(
            f"input {path!r} holds no file with the extensions {_shortened(extensions)}"
            f" (it holds: {found or 'no files'}); name others with --extensions"
        )
    return ListedSource(path, selection, tuple(pieces), tuple(skipped))


def cut_into_parts(pieces: Sequence[Piece], *, part_bytes: int) -> list[list[Piece]]:
    """Group consecutive pieces into parts of at least `part_bytes` each, but for the last of those of equal weight.

    A part has one weight, since it is what is read several times; its bytes count as often. A shard of a data set,
    which may have any size, is a part of its own.
    """
    parts: list[list[Piece]] = []
    for weight, equals in itertools.groupby(pieces, key=lambda piece: piece.selection.weight):
        room = 0.0
        for piece in equals:
            if room <= 0:
                parts.append([])
                room = part_bytes / max(1, weight)
            parts[-1].append(piece)
            room -= part_bytes if piece.format == DATASET else piece.size
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
        from data_prep.sources.parquet import cut_row_groups  # pyarrow takes a while to import

        return cut_row_groups(path, size=size, piece_bytes=piece_bytes, selection=selection)
    return iter([Piece(format_, path, 0, size, size, selection)])


def _by_bytes(path: str, size: int, *, piece_bytes: int, selection: Selection) -> Iterator[Piece]:
    for start in range(0, max(size, 1), piece_bytes):  # an empty file is a piece too
        stop = min(start + piece_bytes, size)
        yield Piece(JSONL, path, start, stop, stop - start, selection)
