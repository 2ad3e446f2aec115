import argparse
import os
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from data_prep.sources.documents import Document, Dropped, Piece, ReadOptions, Selection
from data_prep.sources.listing import (
    ListedSource,
    add_source_arguments,
    cut_into_parts,
    list_source,
    read_options,
    sources_of,
)
from data_prep.sources.readers import read_piece


def _names(source: ListedSource) -> list[str]:
    return [os.path.relpath(piece.path, source.path) for piece in source.pieces]


def _tree(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_a_tree_is_walked_in_order_and_without_what_is_not_source(tmp_path: Path) -> None:
    _tree(tmp_path, "b.py", "a/z.py", "a/a.c", "a.py", "a/b/c.go", "notes.txt", "c.pyc", "B.py")
    skipped = ["site-packages", "a/__pycache__", ".git", "node_modules/x", ".venv/lib"]
    _tree(tmp_path, *(f"{folder}/skipped.py" for folder in skipped))
    source = list_source(str(tmp_path))
    assert _names(source) == ["B.py", "a.py", "b.py", "a/a.c", "a/z.py", "a/b/c.go"]
    assert source.summary() == {"path": str(tmp_path), "files": 6, "bytes": 4 + 4 + 4 + 5 + 6 + 8}
    # what the user names is not skipped
    assert _names(list_source(str(tmp_path / "site-packages"))) == ["skipped.py"]
    assert _names(list_source(str(tmp_path), extensions=["txt"])) == ["notes.txt"]
    assert _names(list_source(str(tmp_path), extensions=["*"]))[:4] == ["B.py", "a.py", "b.py", "c.pyc"]


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    _tree(tmp_path, "b.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "itself.py").symlink_to(tmp_path / "itself.py")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.py")  # nobody asked for it
    source = list_source(str(tmp_path))
    assert _names(source) == ["b.py"]
    assert {(record.reason, Path(record.source).name) for record in source.skipped} == {
        ("symlink", "link.py"),
        ("symlink", "itself.py"),
        ("symlink", "loop"),
    }


@pytest.mark.parametrize("refused", ["scandir", "lstat"])
def test_what_may_not_be_looked_at_is_counted(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _tree(tmp_path, "a.py", "closed/b.py", "closed.py")
    allowed = getattr(os, refused)

    def refuse(path: Any, **options: Any) -> Any:
        if "closed" in Path(path).name:
            raise PermissionError(13, "Permission denied", path)
        return allowed(path, **options)

    monkeypatch.setattr(os, refused, refuse)  # permissions do not stop root, as whom containers run tests
    source = list_source(str(tmp_path))
    if refused == "scandir":
        expected = Dropped("unreadable_folder", str(tmp_path / "closed"), 0, "Permission denied")
        assert _names(source) == ["a.py", "closed.py"]
    else:
        expected = Dropped("unreadable", str(tmp_path / "closed.py"), 0, "Permission denied")
        assert _names(source) == ["a.py", "closed/b.py"]
    assert source.skipped == (expected,)


def test_excludes_are_those_of_git(tmp_path: Path) -> None:
    names = [
        "a.py",
        "a_pb2.py",
        "build/b.py",
        "deep/build/c.py",
        "deep/keep_pb2.py",
        "vendor/x/y.py",
        "top/vendor/z.py",
    ]
    _tree(tmp_path, *names)
    patterns = ["build/", "*_pb2.py", "!keep_pb2.py", "/vendor"]
    source = list_source(str(tmp_path), exclude=patterns)
    assert _names(source) == ["a.py", "deep/keep_pb2.py", "top/vendor/z.py"]
    with pytest.raises(UserError, match=r"holds no file with the extensions \.py"):
        list_source(str(tmp_path), extensions=[".py"], exclude=["*"])


@pytest.mark.parametrize("part_bytes", [1, 10, 100, 10**6])
def test_parts_are_all_pieces_in_order(part_bytes: int, tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.py").write_text("x" * i)
    pieces = list_source(str(tmp_path)).pieces
    parts = cut_into_parts(pieces, part_bytes=part_bytes)
    assert [piece for part in parts for piece in part] == list(pieces)
    sizes = [sum(piece.size for piece in part) for part in parts]
    assert all(size >= part_bytes for size in sizes[:-1])
    assert all(size < part_bytes + 30 for size in sizes)


def test_a_part_has_one_weight_and_a_shard_of_a_data_set_is_one(tmp_path: Path) -> None:
    once, twice = Selection("a"), Selection("b", weight=2.0)
    pieces = [Piece("file", str(i), 0, 10, 10, once if i < 4 else twice) for i in range(8)]
    shards = [Piece("dataset", "hf:x", i, i + 1, 0, once) for i in range(2)]
    parts = cut_into_parts([*pieces, *shards], part_bytes=20)
    assert [len(part) for part in parts] == [2, 2, 1, 1, 1, 1, 1, 1]


def test_an_input_that_cannot_be_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input '/no/such/path' does not exist"):
        list_source("/no/such/path")
    (tmp_path / "a.jsonl.zst").touch()
    (tmp_path / "README").touch()
    with pytest.raises(
        UserError, match=r"no file with the extensions \.py \(it holds: 1 without extension, 1 \.jsonl\.zst\)"
    ):
        list_source(str(tmp_path), extensions=[".py"])


def _parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args(words)


def test_the_options_read_as_the_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _parsed("--input", "a", "b", "--extensions", ".py")
    assert (arguments.input, arguments.extensions, arguments.text_field) == (["a", "b"], [".py"], "text")
    assert read_options(arguments, fields=()) == ReadOptions("text", "text", (), "count")
    assert read_options(_parsed("--input", "a", "--strict")).bad_input == "refuse"
    for wrong in (["--input", "a", "--mix", "a=a:1"], []):
        with pytest.raises(SystemExit):
            _parsed(*wrong)
    assert "not allowed with" in capsys.readouterr().err


def test_a_summary_holds_the_weight_and_languages(tmp_path: Path) -> None:
    _tree(tmp_path, "a.py", "b.c")
    arguments = _parsed("--mix", f"py={tmp_path}#python:2", f"c={tmp_path}#c:0.5")
    first, second = sources_of(arguments, work=tmp_path)
    common = {"path": str(tmp_path), "files": 2, "bytes": 7}
    assert first.summary() == common | {"name": "py", "weight": 2.0, "languages": ["python"]}
    assert second.summary() == common | {"name": "c", "weight": 0.5, "languages": ["c"]}


def test_strict_refuses_what_cannot_be_looked_at(tmp_path: Path) -> None:
    _tree(tmp_path, "a.py")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(UserError, match=r"loop: symlink \(.*not followed\); mend it, or leave out --strict"):
        sources_of(_parsed("--input", str(tmp_path), "--strict"), work=tmp_path)


def test_every_file_is_a_document_to_bytes(tmp_path: Path) -> None:
    contents = {"a.bin": bytes(range(256)), "b.py": b"caf\xe9", "c.jsonl": b'{"text": "\\u00e9"}\n', "d": "é".encode()}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    pieces = list_source(str(tmp_path), extensions=["*"]).pieces
    records = [record for piece in pieces for record in read_piece(piece, ReadOptions(files_as="bytes"))]
    documents = [record for record in records if isinstance(record, Document)]
    assert [document.utf8 for document in documents] == [
        *[contents[n] for n in ("a.bin", "b.py")],
        b"\xc3\xa9",
        b"\xc3\xa9",
    ]
    assert all(document.text.encode("utf-8", "surrogateescape") == document.utf8 for document in documents)
    reasons = [
        record.reason if isinstance(record, Dropped) else ""
        for piece in pieces
        for record in read_piece(piece, ReadOptions())
    ]
    assert reasons == ["binary", "not_utf8", "", ""]
