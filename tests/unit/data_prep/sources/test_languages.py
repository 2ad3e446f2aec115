import pytest

from data_prep.sources.languages import UNKNOWN, language_of


@pytest.mark.parametrize(
    ("source", "row", "field", "language"),
    [
        ("a/b.py", {}, None, "python"),
        ("a/b.HPP", {}, None, "c++"),
        ("a/b.zig", {}, None, "zig"),
        ("a/Makefile", {}, None, "unknown"),
        ("a/b.jsonl:3", {"text": "x", "lang": "Rust"}, None, "unknown"),
        ("a/b.jsonl:3", {"text": "x", "lang": "Rust"}, "lang", "rust"),
        ("a/b.jsonl.gz:3", {"text": "x", "lang": 3}, "lang", "unknown"),
        ("a/b.jsonl.zst", {}, "lang", "unknown"),
        ("a/b.jsonl:byte 9 + line 1", {}, None, "unknown"),
    ],
)
def test_language_of_file_or_record(source: str, row: dict[str, object], field: str | None, language: str) -> None:
    assert language_of(source, row, field=field) == language


def test_the_name_of_a_record_does_not_tell_its_language() -> None:
    for source in ("a.parquet:row 3", "hf:some/name.py:shard 0, row 1", "a.jsonl.gz:7"):
        assert language_of(source, {}, field=None) == UNKNOWN
