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
from dataclasses import dataclass, replace

from common.command_line import UserError
from common.wording import meant
from data_prep.sources.documents import Dropped, Piece, Selection
from data_prep.sources.formats.cutting import pieces_of_file
from data_prep.sources.formats.recognition import CODE_EXTENSIONS, RECORD_EXTENSIONS, format_of_file
from data_prep.sources.huggingface.data_sets import list_data_set
from data_prep.sources.huggingface.library import PREFIX
from data_prep.sources.records import DATASET
from data_prep.sources.standard_input import STDIN
from data_prep.sources.trees import UNREADABLE_FOLDER, Tree, walk

DEFAULT_EXTENSIONS = (*CODE_EXTENSIONS, *RECORD_EXTENSIONS)
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
    left_out: str = ""
    """The files and folders of a folder that are left out because of their names, in words."""
    fingerprint: str = ""
    """Changes with the content of a data set, whose files are not listed; empty for other sources."""

    def summary(self) -> dict[str, str | int | float | list[str]]:
        """Return the entry of metadata.json: the path, the number of files, and their bytes.

        A data set has a fingerprint instead of its bytes, and a source of a mixture its name, weight and languages.
        """
        files = len({(piece.path, piece.start if piece.format == DATASET else 0) for piece in self.pieces})
        size = sum(piece.size for piece in self.pieces)
        summary: dict[str, str | int | float | list[str]] = {"path": self.path, "files": files, "bytes": size}
        if self.fingerprint:
            summary |= {"bytes": 0, "fingerprint": self.fingerprint}
        if self.selection != Selection(self.path):
            selection = self.selection
            summary |= {"name": selection.name, "weight": selection.weight, "languages": list(selection.languages)}
        return summary


def list_source(
    path: str,
    *,
    selection: Selection | None = None,
    extensions: Sequence[str] = DEFAULT_EXTENSIONS,
    exclude: Sequence[str] = (),
    text_field: str = "text",
    piece_bytes: int = UNCUT,
    stdin: tuple[str, int] | None = None,
) -> ListedSource:
    """Return a source, listed in pieces of about `piece_bytes`.

    Args:
        path: the path or name as the user gave it.
        selection: which of its documents are wanted; if None, all of them, under the name `path`.
        extensions: extensions of the files to read in a folder.
        exclude: files and folders to leave out, as patterns of a .gitignore in the folder.
        text_field: the key of the text in records, by which some of their files are recognised.
        piece_bytes: size of the pieces, for formats that can be cut.
        stdin: path and size of the copy of standard input.

    Raises:
        UserError: the source does not exist, or holds nothing to read.
    """
    selection = selection or Selection(path)

    def pieces_of(name: str, size: int, format_: str) -> Iterator[Piece]:
        return pieces_of_file(name, size, format_=format_, piece_bytes=piece_bytes, selection=selection)

    if path == STDIN:
        if stdin is None:
            raise ValueError("standard input must be copied to a file first")
        format_ = format_of_file(stdin[0], text_field=text_field)
        return ListedSource(path, selection, tuple(pieces_of(*stdin, format_)))
    if path.startswith(PREFIX):
        found = list_data_set(path, selection=selection, text_field=text_field, piece_bytes=piece_bytes)
        return ListedSource(path, selection, tuple(found.pieces), (), found.left_out, found.fingerprint)
    status = _status_of(path)
    if stat.S_ISREG(status.st_mode):
        format_ = format_of_file(path, text_field=text_field, is_named=True)
        return ListedSource(path, selection, tuple(pieces_of(path, status.st_size, format_)))
    if not stat.S_ISDIR(status.st_mode):  # workers and a continued run could not read it again
        raise UserError(f"input {path!r} is a pipe or a device; give a file, or - and pipe jsonl into standard input")
    tree = walk(path, extensions=extensions, exclude=exclude)
    pieces = [
        piece
        for name, size in tree.files
        for piece in pieces_of(name, size, format_of_file(name, text_field=text_field))
    ]
    if not pieces:
        raise _nothing_in(path, tree, extensions)
    return ListedSource(path, selection, tuple(pieces), tuple(tree.unreadable), tree.left_out())


def _status_of(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "is not a local path" if "://" in path else "does not exist"
        raise UserError(
            f"input {path!r} {what}; give a folder, a file, a data set {PREFIX}NAME, or - for standard input"
        ) from error
    except OSError as error:
        raise UserError(f"input {path!r} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that holds NUL
        raise UserError(f"input {path!r} cannot be read: {error}") from error


def _nothing_in(path: str, tree: Tree, extensions: Sequence[str]) -> UserError:
    for entry in tree.unreadable:
        if entry.reason == UNREADABLE_FOLDER:
            return UserError(f"input {path!r} holds nothing that can be read ({entry.source}: {entry.detail})")
    tree.extensions.update(entry.reason for entry in tree.unreadable)
    given = () if tuple(extensions) == DEFAULT_EXTENSIONS else extensions
    near = next(filter(None, (meant(extension, tree.extensions) for extension in given)), "")
    return UserError(
        f"input {path!r} holds no file with the extensions {_shortened(extensions)}"
        f" (it holds: {tree.left_out() or 'no files'}); name others with --extensions{near}"
    )


def know_earlier(sources: Sequence[ListedSource]) -> list[ListedSource]:
    """Return the sources, whose pieces now have the selections of the sources before that have the same file."""
    if len(sources) < 2:
        return list(sources)
    selections_of: dict[tuple[object, ...], list[Selection]] = {}
    known = []
    for source in sources:
        keys = {piece.path: _key_of(piece.path) for piece in source.pieces}
        earlier = {path: tuple(selections_of.get(key, ())) for path, key in keys.items()}
        pieces = tuple(replace(piece, earlier=earlier[piece.path]) for piece in source.pieces)
        known.append(replace(source, pieces=pieces))
        for key in set(keys.values()):
            selections_of.setdefault(key, []).append(source.selection)
    return known


def _key_of(path: str) -> tuple[object, ...]:
    """Return what tells a file from others, however it is named."""
    try:
        status = os.stat(path)
    except OSError:  # not a file of this machine
        return (path,)
    return status.st_dev, status.st_ino


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
