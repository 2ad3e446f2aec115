"""The files of a source tree, in a fixed order, and what else is there: entries that cannot be read or are left out.

Links are not followed, so there are no loops and no file comes twice. Links and folders that cannot be listed are
counted, and do not end the run. Files of other extensions, and folders that hold no source, are counted too.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from common.command_line import UserError
from common.wording import counted
from data_prep.sources.documents import Dropped

ALL_EXTENSIONS = "*"
UNREADABLE_FOLDER = "unreadable_folder"
_SKIPPED = ".git .hg .mypy_cache .ruff_cache .svn .tox .venv __pycache__ node_modules site-packages venv"
SKIPPED_FOLDERS = frozenset(_SKIPPED.split())
_COMPRESSIONS = (".gz", ".gzip", ".zst", ".zstd", ".bz2", ".xz", ".lz4")
_MOST_SHOWN = 6  # kinds of files
_LONGEST_EXTENSION = 16  # a longer one is the end of a name with a full stop in it


@dataclass(frozen=True)
class Tree:
    """The contents of a folder."""

    files: list[tuple[str, int]] = field(default_factory=list)
    """The files to read, with their sizes."""
    unreadable: list[Dropped] = field(default_factory=list)
    """Files and folders that cannot be read, and links."""
    extensions: Counter[str] = field(default_factory=Counter)
    """The extensions of the files that are left out because of theirs."""
    folders: Counter[str] = field(default_factory=Counter)
    """The names of the folders that are left out because of theirs."""

    def left_out(self) -> str:
        """Return what was left out, in words; empty if nothing was."""
        folders = [f"{counted(count, 'folder')} {name}" for name, count in sorted(self.folders.items())]
        return ", ".join([in_words(self.extensions)] * bool(self.extensions) + folders)


def in_words(extensions: Counter[str]) -> str:
    """Return counts of extensions in words, the most frequent first: "538 .tcc, 12 without extension"."""
    kinds = [(f"{count:,} {suffix or 'without extension'}", count) for suffix, count in extensions.most_common()]
    n_more = sum(count for _, count in kinds[_MOST_SHOWN:])
    more = [f"{n_more:,} of {counted(len(kinds) - _MOST_SHOWN, 'other kind')}"] if n_more else []
    return ", ".join([words for words, _ in kinds[:_MOST_SHOWN]] + more)


def walk(root: str, *, extensions: Sequence[str], exclude: Sequence[str] = ()) -> Tree:
    """Return what is in a folder.

    Args:
        root: a folder.
        extensions: extensions of the files to read; `*` means all.
        exclude: files and folders to leave out, as patterns of a .gitignore in `root`.

    Raises:
        UserError: a pattern is invalid.
    """
    is_named, is_excluded = _named_by(extensions), _excluded_by(exclude)
    tree = Tree()

    def unlisted(error: OSError) -> None:
        tree.unreadable.append(Dropped(UNREADABLE_FOLDER, str(error.filename), 0, str(error.strerror)))

    for folder, subfolders, names in os.walk(root, onerror=unlisted):
        inside = "" if folder == root else f"{os.path.relpath(folder, root)}/"
        kept = sorted(name for name in subfolders if not is_excluded(f"{inside}{name}/"))
        tree.folders.update(name for name in kept if name in SKIPPED_FOLDERS)
        links = {name for name in kept if os.path.islink(os.path.join(folder, name))}
        tree.unreadable.extend(_link(os.path.join(folder, name)) for name in kept if name in links - SKIPPED_FOLDERS)
        subfolders[:] = [name for name in kept if name not in links | SKIPPED_FOLDERS]
        for name in sorted(names):
            if is_excluded(inside + name):
                continue
            if is_named(name):
                _add_file(tree, os.path.join(folder, name))
            else:
                tree.extensions[extension_of(name)] += 1
    return tree


def extension_of(name: str) -> str:
    """Return the extension of a file's name: two suffixes if the last one names a compression."""
    suffixes = PurePath(name).suffixes
    n_last = 2 if suffixes and suffixes[-1] in _COMPRESSIONS else 1
    extension = "".join(suffixes[-n_last:])
    return extension if len(extension) <= _LONGEST_EXTENSION else ""


def _add_file(tree: Tree, path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        tree.unreadable.append(Dropped("unreadable", path, 0, str(error.strerror)))
        return
    if stat.S_ISLNK(status.st_mode):
        tree.unreadable.append(_link(path))
    elif stat.S_ISREG(status.st_mode):
        tree.files.append((path, status.st_size))
    else:
        tree.unreadable.append(Dropped("unreadable", path, 0, "a pipe, a socket or a device"))


def _link(path: str) -> Dropped:
    return Dropped("symlink", path, 0, "links in a folder are not followed")


def _named_by(extensions: Sequence[str]) -> Callable[[str], bool]:
    if ALL_EXTENSIONS in extensions:
        return lambda name: True
    suffixes = tuple(extension if extension.startswith(".") else f".{extension}" for extension in extensions)
    return lambda name: name.endswith(suffixes)


def _excluded_by(patterns: Sequence[str]) -> Callable[[str], bool]:
    if not patterns:
        return lambda path: False
    import pathspec

    try:
        return pathspec.GitIgnoreSpec.from_lines(patterns).match_file
    except ValueError as error:
        raise UserError(f"--exclude {' '.join(patterns)}: {error}; write patterns as in a .gitignore") from error
