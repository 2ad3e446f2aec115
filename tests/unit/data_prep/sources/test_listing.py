import os
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from data_prep.sources.documents import Dropped, Piece, Selection
from data_prep.sources.listing import ListedSource, cut_into_parts, list_source
from tests.helpers.records import write_tree


def _names(source: ListedSource) -> list[str]:
    return [os.path.relpath(piece.path, source.path) for piece in source.pieces]


def test_a_tree_is_walked_in_order_without_folders_that_hold_no_source(tmp_path: Path) -> None:
    write_tree(tmp_path, "b.py", "a/z.py", "a/a.c", "a.py", "a/b/c.go", "notes.txt", "c.pyc", "B.py")
    skipped = ["site-packages", "a/__pycache__", ".git", "node_modules/x", ".venv/lib"]
    write_tree(tmp_path, *(f"{folder}/skipped.py" for folder in skipped))
    source = list_source(str(tmp_path))
    assert _names(source) == ["B.py", "a.py", "b.py", "a/a.c", "a/z.py", "a/b/c.go"]
    assert source.summary() == {"path": str(tmp_path), "files": 6, "bytes": 4 + 4 + 4 + 5 + 6 + 8}
    # a folder that the user names is not skipped
    assert _names(list_source(str(tmp_path / "site-packages"))) == ["skipped.py"]
    assert _names(list_source(str(tmp_path), extensions=["txt"])) == ["notes.txt"]
    assert _names(list_source(str(tmp_path), extensions=["*"]))[:4] == ["B.py", "a.py", "b.py", "c.pyc"]


def test_links_are_counted_and_not_followed(tmp_path: Path) -> None:
    write_tree(tmp_path, "b.py")
    (tmp_path / "link.py").symlink_to(tmp_path / "b.py")
    (tmp_path / "itself.py").symlink_to(tmp_path / "itself.py")
    (tmp_path / "loop").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "link.txt").symlink_to(tmp_path / "b.py")  # not one of the extensions
    source = list_source(str(tmp_path))
    assert _names(source) == ["b.py"]
    assert {(record.reason, Path(record.source).name) for record in source.skipped} == {
        ("symlink", "link.py"),
        ("symlink", "itself.py"),
        ("symlink", "loop"),
    }


@pytest.mark.parametrize("refused", ["scandir", "lstat"])
def test_unreadable_entries_are_counted(refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tree(tmp_path, "a.py", "closed/b.py", "closed.py")
    allowed = getattr(os, refused)

    def refuse(path: Any, **options: Any) -> Any:
        if "closed" in Path(path).name:
            raise PermissionError(13, "Permission denied", path)
        return allowed(path, **options)

    monkeypatch.setattr(os, refused, refuse)  # permissions do not restrict root, and containers run tests as root
    source = list_source(str(tmp_path))
    if refused == "scandir":
        expected = Dropped("unreadable_folder", str(tmp_path / "closed"), 0, "Permission denied")
        assert _names(source) == ["a.py", "closed.py"]
    else:
        expected = Dropped("unreadable", str(tmp_path / "closed.py"), 0, "Permission denied")
        assert _names(source) == ["a.py", "closed/b.py"]
    assert source.skipped == (expected,)


def test_excludes_follow_gitignore(tmp_path: Path) -> None:
    names = [
        "a.py",
        "a_pb2.py",
        "build/b.py",
        "deep/build/c.py",
        "deep/keep_pb2.py",
        "vendor/x/y.py",
        "top/vendor/z.py",
    ]
    write_tree(tmp_path, *names)
    patterns = ["build/", "*_pb2.py", "!keep_pb2.py", "/vendor"]
    source = list_source(str(tmp_path), exclude=patterns)
    assert _names(source) == ["a.py", "deep/keep_pb2.py", "top/vendor/z.py"]
    with pytest.raises(UserError, match=r"holds no file with the extensions \.py"):
        list_source(str(tmp_path), extensions=[".py"], exclude=["*"])


@pytest.mark.parametrize("part_bytes", [1, 10, 100, 10**6])
def test_parts_hold_all_pieces_in_order(part_bytes: int, tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i:02}.py").write_text("x" * i)
    pieces = list_source(str(tmp_path)).pieces
    parts = cut_into_parts(pieces, part_bytes=part_bytes)
    assert [piece for part in parts for piece in part] == list(pieces)
    sizes = [sum(piece.size for piece in part) for part in parts]
    assert all(size >= part_bytes for size in sizes[:-1])
    assert all(size < part_bytes + 30 for size in sizes)


def test_a_part_has_one_weight_and_ends_with_a_shard_of_unknown_size(tmp_path: Path) -> None:
    once, twice = Selection("a"), Selection("b", weight=2.0)
    pieces = [Piece("file", str(i), 0, 10, 10, once if i < 4 else twice) for i in range(8)]
    shards = [Piece("dataset", "hf:x", i, i + 1, size, once) for i, size in enumerate((0, 0, 5, 20, 10, 0))]
    parts = cut_into_parts([*pieces, *shards], part_bytes=20)
    assert [len(part) for part in parts] == [2, 2, 1, 1, 1, 1, 1, 1, 2, 2]


def test_an_input_without_documents_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"input '/no/such/path' does not exist"):
        list_source("/no/such/path")
    (tmp_path / "a.jsonl.zst").touch()
    (tmp_path / "README").touch()
    with pytest.raises(
        UserError, match=r"no file with the extensions \.py \(it holds: 1 without extension, 1 \.jsonl\.zst\)"
    ):
        list_source(str(tmp_path), extensions=[".py"])
