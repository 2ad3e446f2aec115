"""What makes of a folder a whole one: manifest.json, with the size and hash of every file, written last.

    {"training_state.json": {"bytes": 812, "xxh64": "9c0f..."}, ...}

A folder without it, or with a file that differs from it, is damaged. Of many ranks each can take a share of the files.
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
    """Return the names of all files below `directory`, relative to it, sorted; but for the manifest."""
    names = (str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def entries_of(directory: Path, names: Iterable[str]) -> Entries:
    """Return the manifest's entries for some files of `directory`; reads them."""
    return {name: {"bytes": (directory / name).stat().st_size, "xxh64": _xxh64(directory / name)} for name in names}


def write_manifest(directory: Path, entries: Entries) -> None:
    """Write the manifest, and with it make `directory` whole."""
    write_json(directory / MANIFEST, dict(sorted(entries.items())))


def damage_of(directory: Path, *, share: int = 0, n_shares: int = 1) -> str | None:
    """Return what is wrong with a sealed folder, or None if every file of this share is as it was written."""
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
                return f"{name} has another hash than when it was written"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object whose names all differ: a bit that turns one into another would leave a file unverified.

    Raises:
        ValueError: a name comes twice.
    """
    if len(named := dict(pairs)) < len(pairs):
        raise ValueError("a name comes twice")
    return named


def _xxh64(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh64).hexdigest()  # type: ignore[arg-type]
