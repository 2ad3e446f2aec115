"""manifest.json: the size and hash of every file of a folder, written last.

    {"training_state.json": {"bytes": 812, "xxh64": "9c0f..."}, ...}

A folder is whole if it has a manifest and every file matches it; otherwise it is damaged. Ranks can divide the files
among themselves to hash and to verify them.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import xxhash

from common.files import inside, write_json

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


def damage_of(directory: Path, *, share: int = 0, n_shares: int = 1) -> str | None:
    """Return what is wrong with a folder, or None if all checked files match the manifest.

    Args:
        directory: the folder.
        share: which share of the files to check, from 0; every rank can take one.
        n_shares: number of shares.

    Raises:
        UserError: the manifest names a file outside the folder.
    """
    try:
        text = (directory / MANIFEST).read_text(encoding="utf-8")
        entries: Entries = json.loads(text, object_pairs_hook=_without_doubles)
        expected = [(name, entry["bytes"], entry["xxh64"]) for name, entry in entries.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"no readable {MANIFEST}"
    for name, n_bytes, xxh64 in expected[share::n_shares]:
        path = inside(directory, name, named_in=MANIFEST)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != n_bytes:
            return f"{name} has {path.stat().st_size} bytes instead of {n_bytes}"
        try:
            if _xxh64(path) != xxh64:
                return f"{name} does not match its hash in {MANIFEST}"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object without duplicate names.

    A flipped bit could turn one name into another, and the file of the lost name would not be verified.

    Raises:
        ValueError: a name occurs twice.
    """
    if len(named := dict(pairs)) < len(pairs):
        raise ValueError("a name occurs twice")
    return named


def _xxh64(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh64).hexdigest()  # type: ignore[arg-type]
