import argparse
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
import zstandard

from common.command_line import UserError
from data_prep.documents import (
    CODE_EXTENSIONS,
    Document,
    Dropped,
    Source,
    add_source_arguments,
    cut_into_parts,
    list_sources,
    read_piece,
)


def _read(sources: list[Source], *, text_field: str = "text") -> list[Document | Dropped]:
    return [
        record for source in sources for piece in source.pieces for record in read_piece(piece, text_field=text_field)
    ]


def _texts(path: Path, **options: str) -> list[str]:
    """What a path gives: texts, and the reasons of what was dropped in angle brackets."""
    records = _read(list_sources([str(path)], extensions=CODE_EXTENSIONS), **options)
    return [record.text if isinstance(record, Document) else f"<{record.reason}>" for record in records]


def _lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_tree_is_walked_in_order_and_without_what_is_not_source(tmp_path: Path) -> None:
    for name in ["b.py", "a/z.py", "a/a.c", "a.py", "a/b/c.go", "notes.txt", "c.pyc", "B.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for folder in ["site-packages", "a/__pycache__", ".git", "node_modules/x", ".venv/lib"]:
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "skipped.py").write_text("skipped")
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert _texts(tmp_path) == ["B.py", "a.py", "b.py", "a/a.c", "a/z.py", "a/b/c.go"]
    assert _texts(tmp_path / "site-packages") == ["skipped"]  # what the user names is not skipped
    assert [Path(piece.path).name for piece in list_sources([str(tmp_path)], extensions=["txt"])[0].pieces] == [
        "notes.txt"
    ]


def test_text_files_that_are_none_are_counted(tmp_path: Path) -> None:
    (tmp_path / "1.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    (tmp_path / "2.py").write_bytes(b"caf\xe9")
    (tmp_path / "3.py").write_bytes(b"a\0b")
    (tmp_path / "4.py").touch()
    assert _texts(tmp_path) == ["\ufeffx = 1\r\n", "<not_utf8>", "<binary>", ""]
    [source] = list_sources([str(tmp_path)], extensions=[".py"])
    (tmp_path / "1.py").unlink()
    assert _read([source])[0] == Dropped("unreadable", str(tmp_path / "1.py"), 10)
    assert source.summary() == {"path": str(tmp_path), "files": 4, "bytes": 10 + 4 + 3}


def test_a_folder_that_may_not_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.py").write_text("x")
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # permissions do not stop root, as whom containers run tests
    [source] = list_sources([str(tmp_path)], extensions=[".py"])
    assert source.unreadable == (str(tmp_path / "closed"),)
    assert len(source.pieces) == 1


def test_jsonl_and_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    good = ["one", "zwei\n\té☃", ""]
    path.write_bytes(
        _lines({"text": good[0]})
        + b"\n{not json}\n[1]\n"
        + _lines({"txt": "x"}, {"text": 3}, {"text": good[1], "other": 1})
        + b'{"text": "\\ud800"}\n{"text": "\xff"}\n'
        + _lines({"text": good[2]})[:-1]  # no line end at the end of the file
    )
    reasons = ["<bad_json>", "<no_text_field>", "<no_text_field>", "<text_not_a_string>"]
    assert _texts(path) == [good[0], *reasons, good[1], "<not_utf8>", "<bad_json>", good[2]]
    assert _texts(path, text_field="txt").count("x") == 1
    sources = [record.source for record in _read(list_sources([str(path)], extensions=[]))]
    assert sources[:2] == [f"{path}:1", f"{path}:3"]


def test_compressed_jsonl_is_the_same_corpus(tmp_path: Path) -> None:
    rows = _lines(*({"text": f"document {i} " * i} for i in range(50)))
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows[:500]) + gzip.compress(rows[500:]))
    frames = [zstandard.compress(rows[:700]), zstandard.compress(rows[700:])]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    expected = [f"document {i} " * i for i in range(50)]
    for name in ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"]:
        assert _texts(tmp_path / name) == expected


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_gives_what_comes_before_the_damage(suffix: str, tmp_path: Path) -> None:
    rows = _lines(*({"text": os.urandom(500).hex()} for _ in range(200)))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(rows) if suffix == ".gz" else zstandard.compress(rows))
    whole = _texts(path)
    path.write_bytes(path.read_bytes()[:-20_000])
    cut = _texts(path)
    kept = [text for text in cut if not text.startswith("<")]
    assert kept == whole[: len(kept)]
    assert 0 < len(kept) < 200
    assert cut[-1] == "<corrupt_archive>"
    path.write_bytes(b"this is no archive")
    assert _texts(path) == ["<corrupt_archive>"]


@pytest.mark.parametrize("piece_bytes", [1, 7, 20, 64, 1000, 10**9])
def test_a_cut_file_gives_every_line_once(piece_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["é" * (i % 13) for i in range(40)]
    path.write_bytes(_lines(*({"text": text} for text in texts)))
    sources = list_sources([str(path)], extensions=[], piece_bytes=piece_bytes)
    records = _read(sources)
    assert [record.text for record in records if isinstance(record, Document)] == texts
    assert sum(piece.size for piece in sources[0].pieces) == path.stat().st_size
    assert sum(record.input_bytes for record in records) == path.stat().st_size
    assert sources[0].summary()["files"] == 1


@pytest.mark.parametrize("part_bytes", [1, 10, 100, 10**6])
def test_parts_are_all_pieces_in_order(part_bytes: int, tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.py").write_text("x" * i)
    pieces = list_sources([str(tmp_path)], extensions=[".py"])[0].pieces
    parts = cut_into_parts(pieces, part_bytes=part_bytes)
    assert [piece for part in parts for piece in part] == list(pieces)
    sizes = [sum(piece.size for piece in part) for part in parts]
    assert all(size >= part_bytes for size in sizes[:-1])
    assert all(size < part_bytes + 30 for size in sizes)


def test_an_input_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input '/no/such/path' does not exist"):
        list_sources([str(tmp_path), "/no/such/path"][1:], extensions=[".py"])
    (tmp_path / "a.jsonl.zst").touch()
    (tmp_path / "README").touch()
    with pytest.raises(
        UserError, match=r"no file with the extensions \.py \(it holds: 1 without extension, 1 \.jsonl\.zst\)"
    ):
        list_sources([str(tmp_path)], extensions=[".py"])


def test_the_options_read_as_the_help_says() -> None:
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    arguments = parser.parse_args(["--input", "a", "b", "--extensions", ".py"])
    assert (arguments.input, arguments.extensions, arguments.text_field) == (["a", "b"], [".py"], "text")
