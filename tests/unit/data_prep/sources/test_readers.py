import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from common.command_line import UserError
from data_prep.filters.languages import UNKNOWN, language_of
from data_prep.sources.documents import Document, Dropped, ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import BadInputError, read_piece


def _records(path: str | Path, *, piece_bytes: int = 1 << 62, **options: Any) -> list[Document | Dropped]:
    pieces = list_source(str(path), extensions=["*"], piece_bytes=piece_bytes).pieces
    return [record for piece in pieces for record in read_piece(piece, ReadOptions(**options))]


def _texts(records: Sequence[Document | Dropped]) -> list[str]:
    """What there is: texts, and the reasons of what was dropped in angle brackets."""
    return [record.text if isinstance(record, Document) else f"<{record.reason}>" for record in records]


def _lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _offset(record: Document | Dropped) -> int:
    assert isinstance(record, Dropped)
    return int(record.detail.partition("byte ")[2].split(":")[0])


def test_text_files_that_are_none_are_counted(tmp_path: Path) -> None:
    (tmp_path / "1.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    (tmp_path / "2.py").write_bytes(b"caf\xe9")
    (tmp_path / "3.py").write_bytes(b"a\0b")
    (tmp_path / "4.py").touch()
    pieces = list_source(str(tmp_path)).pieces
    (tmp_path / "4.py").unlink()
    records = [record for piece in pieces for record in read_piece(piece, ReadOptions())]
    assert _texts(records) == ["\ufeffx = 1\r\n", "<not_utf8>", "<binary>", "<unreadable>"]
    assert [_offset(record) for record in records[1:]] == [3, 1, 0]
    assert [record.input_bytes for record in records] == [10, 4, 3, 0]


def test_jsonl_and_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    good = ["one", "zwei\n\té☃", ""]
    bad = [
        b"{not json}\n",
        b"[1]\n",
        _lines({"txt": "x"}),
        _lines({"text": 3}),
        b'{"text": "\\ud800"}\n',
        b'{"text": "\xff"}\n',
    ]
    data = _lines({"text": good[0]}) + b"\n" + b"".join(bad) + _lines({"text": good[1], "other": 1}, {"text": good[2]})
    path.write_bytes(data[:-1])  # no line end at the end of the file
    records = _records(path)
    reasons = ["<bad_json>", "<no_text_field>", "<no_text_field>", "<text_not_a_string>", "<not_utf8>", "<bad_json>"]
    assert _texts(records) == [good[0], *reasons, *good[1:]]
    assert [_offset(record) for record in records[1:7]] == [data.index(line) for line in bad]
    assert _texts(_records(path, text_field="txt")).count("x") == 1
    assert [record.source for record in records[:2]] == [f"{path}:1", f"{path}:3"]
    assert isinstance(records[3], Dropped)
    assert "no key 'text' among 'txt'" in records[3].detail


def test_compressed_jsonl_is_the_same_corpus(tmp_path: Path) -> None:
    rows = _lines(*({"text": f"document {i} " * i * i} for i in range(100)))
    gz = gzip.compress(rows[:500]) + gzip.compress(rows[500:]) + b"\0" * 512  # members, and padding as tapes have it
    files = {
        "a.jsonl": rows,
        "a.jsonl.gz": gz,
        "a.jsonl.zst": zstandard.compress(rows[:700]) + zstandard.compress(rows[700:]),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert _texts(_records(tmp_path / name)) == [f"document {i} " * i * i for i in range(100)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_gives_what_comes_before_the_damage(suffix: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = _lines(*({"text": draw.randbytes(500).hex()} for _ in range(300)))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(
        gzip.compress(rows) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(rows)
    )
    whole = path.read_bytes()
    texts = _texts(_records(path))
    cut = len(whole) - 20_000
    path.write_bytes(whole[:cut])
    records = _records(path)
    assert 0 < len(records) - 1 < 300
    assert _texts(records) == [*texts[: len(records) - 1], "<corrupt_archive>"]
    assert _offset(records[-1]) == cut

    path.write_bytes(whole[:cut] + bytes(255 - byte for byte in whole[cut : cut + 100]) + whole[cut + 100 :])
    records = _records(path)
    assert _texts(records[:100]) == texts[:100]
    assert _texts(records)[-1] == "<corrupt_archive>"
    assert 0 < _offset(records[-1]) <= len(whole)

    for damaged in (b"this is no archive", b""):
        path.write_bytes(damaged)
        records = _records(path)
        assert _texts(records) == ["<corrupt_archive>"]
        assert _offset(records[0]) == 0


@pytest.mark.parametrize("piece_bytes", [1, 7, 20, 64, 1000, 10**9])
def test_a_cut_file_gives_every_line_once(piece_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["é" * (i % 13) for i in range(40)]
    path.write_bytes(_lines(*({"text": text} for text in texts)) + b"{bad")
    source = list_source(str(path), piece_bytes=piece_bytes)
    records = _records(path, piece_bytes=piece_bytes)
    assert _texts(records) == [*texts, "<bad_json>"]
    assert _offset(records[-1]) == path.stat().st_size - 4
    assert sum(piece.size for piece in source.pieces) == path.stat().st_size
    assert sum(record.input_bytes for record in records) == path.stat().st_size
    assert source.summary()["files"] == 1


def _table(n_rows: int) -> pa.Table:
    draw = random.Random(1)
    return pa.table(
        {
            "id": list(range(n_rows)),
            "lang": ["Python", None, "c"] * (n_rows // 3),
            "licenses": [["mit", "apache-2.0"]] * n_rows,
            "content": [draw.randbytes(200).hex() + "é☃" for _ in range(n_rows)],
        }
    )


@pytest.mark.parametrize("piece_bytes", [1, 40_000, 10**9])
def test_parquet_gives_every_row_once_with_its_other_columns(piece_bytes: int, tmp_path: Path) -> None:
    path, table = tmp_path / "a.parquet", _table(300)
    pq.write_table(table, path, row_group_size=70)
    pieces = list_source(str(path), piece_bytes=piece_bytes).pieces
    assert len(pieces) == {1: 5, 40_000: 3, 10**9: 1}[piece_bytes]
    records = _records(path, piece_bytes=piece_bytes, text_field="content")
    assert [dict(record.row) | {"content": record.text} for record in records if isinstance(record, Document)] == (
        table.to_pylist()
    )
    assert all(isinstance(record, Document) and record.utf8 == record.text.encode() for record in records)
    assert [record.source for record in records] == [f"{path}:row {i}" for i in range(300)]
    assert sum(record.input_bytes for record in records) == path.stat().st_size == sum(piece.size for piece in pieces)
    projected = _records(path, text_field="content", fields=("lang", "no_such"))
    assert {tuple(record.row) for record in projected if isinstance(record, Document)} == {("lang", "content")}
    assert _texts(projected) == _texts(records)


def test_parquet_with_texts_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    binary = pa.array([b"good", b"caf\xe9", None, "é".encode()], type=pa.binary())
    strings = pa.array(["x", "y", "x", None]).dictionary_encode()
    pq.write_table(pa.table({"text": binary, "category": strings, "number": [1, 2, 3, 4]}), path)
    assert _texts(_records(path)) == ["good", "<not_utf8>", "<text_not_a_string>", "é"]
    assert _texts(_records(path, text_field="category")) == ["x", "y", "x", "<text_not_a_string>"]
    assert _texts(_records(path, text_field="number")) == ["<text_not_a_string>"] * 4
    missing = _records(path, text_field="content", fields=())
    assert _texts(missing) == ["<no_text_field>"] * 4
    assert isinstance(missing[0], Dropped)
    assert "no key 'content' among 'text', 'category', 'number'" in missing[0].detail


def test_damaged_parquet_loses_the_row_group_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = _table(300)
    pq.write_table(table, path, row_group_size=100)
    column = pq.read_metadata(path).row_group(1).column(3)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    records = _records(path, text_field="content", piece_bytes=1)
    texts = table["content"].to_pylist()
    assert _texts(records) == [*texts[:100], "<corrupt_parquet>", *texts[200:]]
    bad = records[100]
    assert isinstance(bad, Dropped)
    assert bad.source == f"{path}:row 100"
    first = pq.read_metadata(path).row_group(1).column(0)
    assert f"from byte {first.dictionary_page_offset or first.data_page_offset}:" in bad.detail
    assert sum(record.input_bytes for record in records) == len(data)
    with pytest.raises(BadInputError, match=r"a\.parquet:row 100: corrupt_parquet \(row group 1, from byte \d+: "):
        _records(path, text_field="content", bad_input="refuse")
    for damaged in (bytes(data[:-50]), b"", b"PAR1 and no more"):
        path.write_bytes(damaged)
        assert _texts(_records(path, text_field="content")) == ["<corrupt_parquet>"]
        assert _offset(_records(path)[0]) == len(damaged)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.py", b"ab\0", r"a\.py: binary \(byte 2: NUL\); mend it"),
        ("a.py", b"abc\xe9", r"a\.py: not_utf8 \(byte 3: .*\); mend it"),
        ("a.jsonl", b'{"text": "x"}\n{"text"}\n', r"a\.jsonl:2: bad_json \(byte 14: .*without --strict"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl:1: no_text_field \(byte 0: no key 'text' among 'txt'\)"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"text": "x"}\n', mtime=0)[:-3],
            r"a\.jsonl\.gz: corrupt_archive \(byte 31: .*early",
        ),
    ],
)
def test_strict_names_file_and_byte(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        _records(tmp_path / name, bad_input="refuse")


def test_a_record_says_nothing_of_its_language_by_its_name() -> None:
    for source in ("a.parquet:row 3", "hf:some/name.py:shard 0, row 1", "a.jsonl.gz:7"):
        assert language_of(source, {}, field=None) == UNKNOWN


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A folder of data files, as data sets have them."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        rows = ({"text": f"document {i} {j}", "lang": "python", "id": j} for j in range(4))
        (folder / "data" / f"train-{i:05}-of-00003.jsonl").write_bytes(_lines(*rows))
    (folder / "data" / "test-00000-of-00001.jsonl").write_bytes(_lines({"text": "of the test", "lang": "c", "id": 0}))
    return folder


def test_a_data_set_is_streamed_by_its_shards(dataset: Path, tmp_path: Path) -> None:
    source = list_source(f"hf:{dataset}")
    assert [(piece.start, piece.stop) for piece in source.pieces] == [(0, 1), (1, 2), (2, 3)]
    assert source.summary().keys() == {"path", "files", "bytes", "fingerprint"}
    expected = [f"document {i} {j}" for i in range(3) for j in range(4)]
    backwards = [_texts(list(read_piece(piece, ReadOptions()))) for piece in reversed(source.pieces)]
    assert [text for texts in reversed(backwards) for text in texts] == expected
    records = _records(f"hf:{dataset}", fields=("lang",))
    assert _texts(records) == expected
    assert {tuple(record.row) for record in records if isinstance(record, Document)} == {("text", "lang")}
    assert records[5].source == f"hf:{dataset}:shard 1, row 2"
    assert _texts(_records(f"hf:{dataset}@test")) == ["of the test"]
    assert _texts(_records(f"hf:{dataset}@test", text_field="content")) == ["<no_text_field>"]
    with pytest.raises(UserError, match=r"input 'hf:.*@nothing' cannot be loaded: .*nothing"):
        list_source(f"hf:{dataset}@nothing")
    with pytest.raises(UserError, match=r"input 'hf:no/such' cannot be loaded: "):
        list_source("hf:no/such")

    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": expected})})
    saved.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved", tmp_path / "saved" / "train"):
        assert _texts(_records(f"hf:{path}")) == expected


def test_a_shard_that_breaks_is_counted(dataset: Path) -> None:
    (dataset / "data" / "train-00001-of-00003.jsonl").write_bytes(b'{"text": "x", "lang": "c", "id": 1}\n{broken\n')
    records = _records(f"hf:{dataset}")
    broken = [record for record in records if isinstance(record, Dropped)]
    assert [record.reason for record in broken] == ["corrupt_dataset"]
    assert broken[0].source == f"hf:{dataset}:shard 1"
    assert [record.text for record in records[-4:] if isinstance(record, Document)] == [
        f"document 2 {j}" for j in range(4)
    ]
