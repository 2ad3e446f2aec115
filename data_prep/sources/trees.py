"""The files of a source tree, in a fixed order, and the entries that cannot be read.

Links are not followed, so there are no loops and no file comes twice. Links and folders that cannot be listed are
counted, and do not end the run.
"""

import os
import stat
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath

from common.command_line import UserError
from data_prep.sources.documents import Dropped

ALL_EXTENSIONS = "*"
UNREADABLE_FOLDER = "unreadable_folder"
_SKIPPED = ".git .hg .mypy_cache .ruff_cache .svn .tox .venv __pycache__ node_modules site-packages venv"
SKIPPED_FOLDERS = frozenset(_SKIPPED.split())


def walk(
    root: str, *, extensions: Sequence[str], exclude: Sequence[str] = ()
) -> tuple[list[tuple[str, int]], list[Dropped], Counter[str]]:
    """Return a tree's files with their sizes, its unreadable entries, and counts of the extensions of all other files.

    Args:
        root: a folder.
        extensions: extensions of the files to return; `*` means all.
        exclude: files and folders to leave out, as patterns of a .gitignore in `root`.

    Raises:
        UserError: a pattern is invalid.
    """
    is_named, is_excluded = _named_by(extensions), _excluded_by(exclude)
    files: list[tuple[str, int]] = []
    skipped: list[Dropped] = []
    others: Counter[str] = Counter()

    def unlisted(error: OSError) -> None:
        skipped.append(Dropped(UNREADABLE_FOLDER, str(error.filename), 0, str(error.strerror)))

    for folder, subfolders, names in os.walk(root, onerror=unlisted):
        inside = "" if folder == root else f"{os.path.relpath(folder, root)}/"
        kept = sorted(name for name in set(subfolders) - SKIPPED_FOLDERS if not is_excluded(f"{inside}{name}/"))
        links = {name for name in kept if os.path.islink(os.path.join(folder, name))}
        skipped += [_link(os.path.join(folder, name)) for name in kept if name in links]
        subfolders[:] = [name for name in kept if name not in links]
        for name in sorted(names):
            if is_excluded(inside + name):
                continue
            if not is_named(name):
                others["".join(PurePath(name).suffixes[-2:])] += 1
                continue
            path = os.path.join(folder, name)
            try:
                status = os.lstat(path)
            except OSError as error:
                skipped.append(Dropped("unreadable", path, 0, str(error.strerror)))
                continue
            if stat.S_ISLNK(status.st_mode):
                skipped.append(_link(path))
            elif stat.S_ISREG(status.st_mode):
                files.append((path, status.st_size))
    return files, skipped, others


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
