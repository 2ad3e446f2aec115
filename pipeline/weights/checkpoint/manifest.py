"""manifest.json: the size and hash of every file of a folder, written last.

    {"training_state.json": {"bytes": 812, "xxh64": "9c0f..."}, ...}

A folder is whole if its manifest lists all that the folder must hold, and every listed file matches; otherwise it is
damaged. Ranks can divide the files among themselves to hash and to verify them.
"""

import hashlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import xxhash

from common.files import inside, write_json
from common.small_files import BadFileError, read_json

MANIFEST = "manifest.json"
Entries = dict[str, dict[str, Any]]


def files_in(directory: Path) -> list[str]:
    """Return the names of all files below `directory` except the manifest, relative to it and sorted."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def entries_of(directory: Path, names: Iterable[str]) -> Entries:
    """Return the manifest entries of these files of `directory`; reads every file to hash it."""
    return {name: {"bytes": (directory / name).stat().st_size, "xxh64": _xxh64(directory / name)} for name in names}


def write_manifest(directory: Path, entries: Entries) -> None:
    """Write the manifest, which makes `directory` whole."""
    write_json(directory / MANIFEST, dict(sorted(entries.items())))


def damage_of(directory: Path, *, needed: Collection[str] = (), share: int = 0, n_shares: int = 1) -> str | None:
    """Return what is wrong with a folder, or None if all checked files match the manifest.

    Args:
        directory: the folder.
        needed: names of files that the manifest must list; they are checked with every share.
        share: which share of the other files to check, from 0; every rank can take one.
        n_shares: number of shares.

    Raises:
        UserError: the manifest names a file outside the folder.
    """
    entries = read_entries(directory)
    if entries is None:
        return f"no readable {MANIFEST}"
    paths = {name: inside(directory, name, named_in=MANIFEST) for name in entries}
    shared = [name for name in entries if name not in needed][share::n_shares]
    damages = (_damage(paths[name], name, entries[name]) for name in [*needed, *shared])
    return unlisted(entries, needed=needed) or next(filter(None, damages), None)


def unlisted(entries: Entries | None, *, needed: Iterable[str]) -> str | None:
    """Return which of the needed files a manifest does not list, as damage, or None if it lists them all."""
    return next((f"{MANIFEST} does not list {name}" for name in needed if name not in (entries or {})), None)


def read_entries(directory: Path) -> Entries | None:
    """Return the entries of a folder's manifest, or None if it has none, or one that was not written here.

    A flipped bit could turn one name into another; since the reader refuses names that occur twice, the file of the
    lost name does not go unverified.
    """
    try:
        entries = read_json(directory / MANIFEST)
    except BadFileError:
        return None
    is_sound = isinstance(entries, dict) and all(
        isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and isinstance(entry.get("xxh64"), str)
        for entry in entries.values()
    )
    return entries if is_sound else None


def _damage(path: Path, name: str, entry: dict[str, Any]) -> str | None:
    try:
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _xxh64(path) != entry["xxh64"]:
            return f"{name} does not match its hash in {MANIFEST}"
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return None


def _xxh64(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh64).hexdigest()  # type: ignore[arg-type]
