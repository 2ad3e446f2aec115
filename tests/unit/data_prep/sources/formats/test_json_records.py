"""JSON lines and arrays whose records are damaged, or too large."""

import gzip
import json
from pathlib import Path

import pytest

from data_prep.sources.documents import Document, Dropped
from data_prep.sources.formats import json_records
from tests.helpers.records import byte_of, jsonl, records_of, texts_of


@pytest.fixture
def small_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a record have at most 1000 bytes, and read 16 bytes at a time."""
    monkeypatch.setattr(json_records, "MOST_RECORD_BYTES", 1000)
    monkeypatch.setattr(json_records, "_CHUNK_BYTES", 16)


@pytest.mark.usefixtures("small_records")
@pytest.mark.parametrize("piece_bytes", [100, 999, 5000, 1 << 62])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_record_that_is_too_large_is_counted_with_its_bytes(suffix: str, piece_bytes: int, tmp_path: Path) -> None:
    large, before, after = b'{"text": "' + b"x" * 7000 + b'"}\n', jsonl({"text": "before"}), jsonl({"text": "after"})
    data = before + large + after + large[:-3]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(gzip.compress(data) if suffix else data)
    records = records_of(path, piece_bytes=piece_bytes)
    assert texts_of(records) == ["before", "<too_large>", "after", "<too_large>"]
    assert [record.input_bytes for record in records] == [len(before), len(large), len(after), len(large) - 3]
    assert byte_of(records[1]) == len(before)
    assert isinstance(records[1], Dropped)
    assert records[1].detail.endswith("the record has more than 67,108,864 bytes")


def test_what_nobody_asked_for_does_not_harm_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a", "path": "\\ud800"}\n{"text": "b", "n": 1e999}\n{"text": "c"}\n{"text": "d", "pa')
    assert texts_of(records_of(path)) == ["a", "b", "c", "<bad_json>"]


@pytest.mark.usefixtures("small_records")
def test_an_array_gives_its_elements_and_the_bytes_of_each(tmp_path: Path) -> None:
    rows = [{"text": "é☃" * i, "n": i} for i in range(60)]
    for indent in (None, 2):
        data = json.dumps(rows, indent=indent, ensure_ascii=False).encode()
        (tmp_path / "a.json").write_bytes(data)
        records = records_of(tmp_path / "a.json")
        assert texts_of(records) == [row["text"] for row in rows]
        assert [record.row for record in records if isinstance(record, Document)] == rows
        assert [record.source for record in records[:2]] == [f"{tmp_path}/a.json:1", f"{tmp_path}/a.json:2"]
        assert len(data) - 3 <= sum(record.input_bytes for record in records) <= len(data)


@pytest.mark.usefixtures("small_records")
@pytest.mark.parametrize(
    ("rest", "expected"),
    [
        (b', 7, null, {"text": 1}, {"txt": "x"}, {"text": "z"}]', ["<no_text_field>", "<no_text_field>", "<text_not_a_string>", "<no_text_field>", "z"]),  # noqa: E501
        (b', {"text": "\xff"}, {"text": "z"}]', ["<not_utf8>", "z"]),
        (b', {"text": "cut', ["<bad_json>"]),
        (b', {"text": "z"} {"text": "no comma"}]', ["z", "<bad_json>"]),
        (b"", ["<bad_json>"]),
        (b"]", []),
        (b"] and more", []),
        (b', {"text": "' + b"x" * 5000 + b'"}, {"text": "z"}]', ["<bad_json>"]),
        (b", " + b"[" * 3000, ["<bad_json>"]),
    ],
)  # fmt: skip
def test_a_damaged_array_gives_the_documents_before_the_damage(
    rest: bytes, expected: list[str], tmp_path: Path
) -> None:
    data = b'[{"text": "a"}, {"text": "b"}' + rest
    (tmp_path / "a.json").write_bytes(data)
    records = records_of(tmp_path / "a.json")
    assert texts_of(records) == ["a", "b", *expected]
    assert sum(record.input_bytes for record in records) <= len(data)


def test_a_piece_without_the_start_of_a_line_reads_no_further_than_itself(tmp_path: Path) -> None:
    """A line of n pieces would otherwise be read n times."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "' + b"x" * 100_000 + b'"}\n' + jsonl({"text": "y"}))
    records = records_of(path, piece_bytes=10)
    assert [len(text) for text in texts_of(records)] == [100_000, 1]


@pytest.mark.parametrize("is_array", [False, True])
def test_how_deep_a_record_may_be_does_not_depend_on_the_caller(is_array: bool, tmp_path: Path) -> None:
    """Python's own limit is 1000 calls, of the reader's callers and of the record together."""
    rows = [f'{{"text": "{n}", "tree": [{"[" * (n - 2)}{"]" * (n - 2)}]}}' for n in (2, 499, 500, 501, 800, 980, 2000)]
    path = tmp_path / "a.jsonl"
    path.write_text("[" + ",".join(rows) + "]" if is_array else "\n".join(rows) + "\n")

    def called(n_calls: int) -> list[str]:
        return called(n_calls - 1) if n_calls else texts_of(records_of(path))

    assert called(0) == called(300) == ["2", "499", "500", *(["<bad_json>"] if is_array else ["<too_deep>"] * 4)]


def test_long_keys_are_named_by_their_ends(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(jsonl({"k" * 10**6: 1, "txt": 2}))
    (lost,) = records_of(tmp_path / "a.jsonl")
    assert isinstance(lost, Dropped)
    assert lost.detail.endswith(
        "among "
        + repr("k" * 10**6)[:60]
        + " [999,922 characters left out] "
        + "k" * 19
        + "', 'txt'; did you mean 'txt'?"
    )
