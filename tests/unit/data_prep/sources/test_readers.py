import gzip
import random
from pathlib import Path

import pytest
import zstandard

from common.command_line import UserError
from data_prep.sources.documents import Document, Dropped, ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece
from tests.helpers.records import byte_of, jsonl, records_of, texts_of


def test_files_that_are_not_text_are_counted(tmp_path: Path) -> None:
    (tmp_path / "1.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    (tmp_path / "2.py").write_bytes(b"caf\xe9")
    (tmp_path / "3.py").write_bytes(b"a\0b")
    (tmp_path / "4.py").touch()
    pieces = list_source(str(tmp_path)).pieces
    (tmp_path / "4.py").unlink()
    records = [record for piece in pieces for record in read_piece(piece, ReadOptions())]
    assert texts_of(records) == ["\ufeffx = 1\r\n", "<not_utf8>", "<binary>", "<unreadable>"]
    assert [byte_of(record) for record in records[1:]] == [3, 1, 0]
    assert [record.input_bytes for record in records] == [10, 4, 3, 0]


def test_jsonl_and_its_bad_lines(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    good = ["one", "zwei\n\té☃", ""]
    bad = [
        b"{not json}\n",
        b"[1]\n",
        jsonl({"txt": "x"}),
        jsonl({"text": 3}),
        b'{"text": "\\ud800"}\n',
        b'{"text": "\xff"}\n',
    ]
    data = jsonl({"text": good[0]}) + b"\n" + b"".join(bad) + jsonl({"text": good[1], "other": 1}, {"text": good[2]})
    path.write_bytes(data[:-1])  # no line end at the end of the file
    records = records_of(path)
    reasons = ["<bad_json>", "<no_text_field>", "<no_text_field>", "<text_not_a_string>", "<not_utf8>", "<bad_json>"]
    assert texts_of(records) == [good[0], *reasons, *good[1:]]
    assert [byte_of(record) for record in records[1:7]] == [data.index(line) for line in bad]
    assert texts_of(records_of(path, text_field="txt")).count("x") == 1
    assert [record.source for record in records[:2]] == [f"{path}:1", f"{path}:3"]
    assert isinstance(records[3], Dropped)
    assert "no key 'text' among 'txt'" in records[3].detail


def test_compressed_jsonl_is_the_same_corpus(tmp_path: Path) -> None:
    rows = jsonl(*({"text": f"document {i} " * i * i} for i in range(100)))
    gz = gzip.compress(rows[:500]) + gzip.compress(rows[500:]) + b"\0" * 512  # two members, and padding
    files = {
        "a.jsonl": rows,
        "a.jsonl.gz": gz,
        "a.jsonl.zst": zstandard.compress(rows[:700]) + zstandard.compress(rows[700:]),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        assert texts_of(records_of(tmp_path / name)) == [f"document {i} " * i * i for i in range(100)]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_damaged_archive_gives_the_documents_before_the_damage(suffix: str, tmp_path: Path) -> None:
    draw = random.Random(1)
    rows = jsonl(*({"text": draw.randbytes(500).hex()} for _ in range(300)))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(
        gzip.compress(rows) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(rows)
    )
    whole = path.read_bytes()
    texts = texts_of(records_of(path))
    cut = len(whole) - 20_000
    path.write_bytes(whole[:cut])
    records = records_of(path)
    assert 0 < len(records) - 1 < 300
    assert texts_of(records) == [*texts[: len(records) - 1], "<corrupt_archive>"]
    assert byte_of(records[-1]) == cut

    path.write_bytes(whole[:cut] + bytes(255 - byte for byte in whole[cut : cut + 100]) + whole[cut + 100 :])
    records = records_of(path)
    assert texts_of(records[:100]) == texts[:100]
    assert texts_of(records)[-1] == "<corrupt_archive>"
    assert 0 < byte_of(records[-1]) <= len(whole)

    for damaged in (b"this is no archive", b""):
        path.write_bytes(damaged)
        records = records_of(path)
        assert texts_of(records) == ["<corrupt_archive>"]
        assert byte_of(records[0]) == 0


@pytest.mark.parametrize("piece_bytes", [1, 7, 20, 64, 1000, 10**9])
def test_a_cut_file_gives_every_line_once(piece_bytes: int, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = ["é" * (i % 13) for i in range(40)]
    path.write_bytes(jsonl(*({"text": text} for text in texts)) + b"{bad")
    source = list_source(str(path), piece_bytes=piece_bytes)
    records = records_of(path, piece_bytes=piece_bytes)
    assert texts_of(records) == [*texts, "<bad_json>"]
    assert byte_of(records[-1]) == path.stat().st_size - 4
    assert sum(piece.size for piece in source.pieces) == path.stat().st_size
    assert sum(record.input_bytes for record in records) == path.stat().st_size
    assert source.summary()["files"] == 1


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.py", b"ab\0", r"a\.py: binary \(byte 2: NUL\); repair the file"),
        ("a.py", b"abc\xe9", r"a\.py: not_utf8 \(byte 3: .*\); repair the file"),
        ("a.jsonl", b'{"text": "x"}\n{"text"}\n', r"a\.jsonl:2: bad_json \(byte 14: .*omit --strict"),
        ("a.jsonl", b'{"txt": "x"}\n', r"a\.jsonl:1: no_text_field \(byte 0: no key 'text' among 'txt'; did"),
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
        records_of(tmp_path / name, bad_input="refuse")


def test_as_bytes_every_file_is_a_document(tmp_path: Path) -> None:
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
