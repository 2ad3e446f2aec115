"""Tests of the differences of input that count, and of the times of files that are believed."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from data_prep.filters.changes import FIXED, UNKNOWN, ContentHash, Fingerprints, save_fingerprints, times_of
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.records import FILE, JSONL, WHOLE

LANGUAGE_ONLY = ReadOptions(fields=("lang",))


def _hash(*records: Document | Dropped, reading: ReadOptions = LANGUAGE_ONLY) -> int:
    content = ContentHash(reading)
    for record in records:
        content.add(record)
    return content.value()


def _document(text: str, **row: Any) -> Document:
    return Document(text, text.encode("utf-8", errors="surrogateescape"), "a:1", 10, {"text": text} | row)


def test_texts_wanted_fields_and_what_was_dropped_count() -> None:
    first, second, lost = _document("a", lang="c"), _document("b", lang="c"), Dropped("not_utf8", "a:3", 7)
    contents = [(), (first,), (first, second), (second, first), (first, lost), (_document("a", lang="d"),),
                (first, Dropped("not_utf8", "a:3", 8)), (_document("a\0"),), (_document("a\udc80"),)]  # fmt: skip
    assert len({_hash(*records) for records in contents}) == len(contents)
    assert _hash(_document("a", lang="c", stars=1)) == _hash(_document("a", lang="c", stars=2))
    everything = ReadOptions()
    assert _hash(_document("a", stars=1), reading=everything) != _hash(_document("a", stars=2), reading=everything)


def _piece(path: Path | str, format_: str = FILE) -> Piece:
    return Piece(format_, str(path), 0, WHOLE, 1, Selection("it"))


@pytest.mark.parametrize("age_s", [0, 1, -3600])
def test_a_time_of_a_moment_ago_is_not_believed(age_s: int, tmp_path: Path) -> None:
    (path := tmp_path / "a").touch()
    old_ns = 1_600_000_000_123_456_789
    os.utime(path, ns=(old_ns, old_ns))
    assert times_of([_piece(path)]) == [old_ns]
    recent_ns = time.time_ns() - age_s * 10**9
    os.utime(path, ns=(recent_ns, recent_ns))
    assert times_of([_piece(path), _piece(tmp_path / "missing")]) == [UNKNOWN, UNKNOWN]


def test_what_nobody_changes_has_no_time(tmp_path: Path) -> None:
    copied = tmp_path / "stdin.jsonl"
    copied.touch()
    own = times_of([_piece(copied, JSONL)])
    (tmp_path / "stdin.jsonl.lock").touch()
    assert own == [UNKNOWN]
    assert times_of([_piece(copied, JSONL), _piece("hf://datasets/a@1/b.jsonl", JSONL)]) == [FIXED, FIXED]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:30], lambda data: data.replace(b"'<u8'", b"'<u8{"), lambda data: b"x"]
)
def test_damaged_fingerprints_are_named(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """numpy raises errors of its parser of Python for some of them."""
    path, piece = tmp_path / "pieces.npy", Piece(FILE, "a.py", 0, 1, 1, Selection("x"))
    save_fingerprints(path, times=[1], contents=[2**64 - 1])
    assert Fingerprints(path, [piece]).in_doubt([1]) == []
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"pieces\.npy is damaged: .*; delete it"):
        Fingerprints(path, [piece])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="it is a FIFO, not a file"):
        Fingerprints(path, [piece])
