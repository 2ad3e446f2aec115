"""Files of records under names that do not say so, and documents under names of records."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from data_prep.sources.documents import Document, Dropped
from data_prep.sources.formats.recognition import format_of_file
from tests.helpers.records import jsonl, records_of, texts_of

TEXTS = ["one", "two\n", "drei ☃"]
LINES = jsonl(*({"text": text} for text in TEXTS))
ARRAY = json.dumps([{"text": text} for text in TEXTS], indent=1).encode()
PACKAGE = b'{\n  "name": "left-pad",\n  "text": "not a record"\n}\n'


def _parquet(path: Path) -> bytes:
    pq.write_table(pa.table({"text": TEXTS}), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("c4.json", LINES),
        ("c4.json.gz", gzip.compress(LINES)),
        ("dolma.json.zst", zstandard.compress(LINES)),
        ("corpus.ndjson", LINES),
        ("corpus.jsonl.gzip", gzip.compress(LINES)),
        ("corpus.JSONL.GZ", gzip.compress(LINES)),
        ("decompressed-by-the-browser.jsonl.gz", LINES),
        ("compressed-after-all.jsonl", gzip.compress(LINES)),
        ("other.jsonl.zst", gzip.compress(LINES)),
        ("part-00000", LINES),
        ("corpus.txt", b"\n \n" + LINES),
        ("windows.jsonl", b"\xef\xbb\xbf" + LINES),
        ("windows.json.gz", gzip.compress(b"\xef\xbb\xbf" + LINES)),
        ("blob", zstandard.compress(LINES)),
        ("array.json", ARRAY),
        ("array.json.gz", gzip.compress(ARRAY)),
        ("array.jsonl", ARRAY),
        ("one-line-array.json", b"\xef\xbb\xbf" + json.dumps(json.loads(ARRAY)).encode()),
    ],
)
def test_records_are_read_by_their_content(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for source in (tmp_path / name, tmp_path):  # named by the user, and found in a folder
        assert texts_of(records_of(source)) == TEXTS
        assert texts_of(records_of(source, files_as="bytes")) == TEXTS
    one = jsonl({"text": "a lone record"})
    if data == LINES:
        (tmp_path / name).write_bytes(one)
        assert texts_of(records_of(tmp_path / name)) == ["a lone record"]


def test_parquet_is_recognised_where_it_is_named(tmp_path: Path) -> None:
    data = _parquet(tmp_path / "a.parquet")
    (tmp_path / "b.pq").write_bytes(data)
    (tmp_path / "blob").write_bytes(data)
    for name in ("a.parquet", "b.pq", "blob"):
        assert texts_of(records_of(tmp_path / name)) == TEXTS


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("package.json", PACKAGE),
        ("minified.json", b'{"name": "x", "version": 1}'),
        ("list.json", b'[{"id": 1}, {"id": 2}]'),
        ("numbers.json", b"[1, 2, 3]\n[4]"),
        ("deep.json", b"[" * 100_000),
        ("broken.json", b'{"text": "x"\n{"text": "y"}\n'),
        ("notes.txt", b"{ is a brace\n{ too\n"),
        ("settings.ini", b"[section]\nkey = 1\n"),
    ],
)
def test_other_json_and_text_stays_a_document(name: str, data: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    assert texts_of(records_of(tmp_path / name)) == [data.decode()]


def test_a_misspelt_key_does_not_make_json_lines_a_document(tmp_path: Path) -> None:
    path = tmp_path / "c4.json"
    path.write_bytes(LINES)
    assert texts_of(records_of(path, text_field="content")) == ["<no_text_field>"] * len(TEXTS)


@pytest.mark.parametrize(
    ("name", "data", "kind"),
    [
        ("notes.txt.gz", gzip.compress(b"plain text"), ".gz"),
        ("tree.tar.zst", zstandard.compress(bytes(2000)), ".zst"),
        ("a.bz2", b"BZh91AY", ".bz2"),
        ("a.jsonl.xz", b"\xfd7zXZ\0", ".xz"),
        ("a.zip", b"PK\x03\x04", ".zip"),
        ("code.py", gzip.compress(b"import this"), ".gz"),
        ("in_a_folder", b"PAR1 and more", ".parquet"),
    ],
)
def test_compressed_bytes_are_a_document_only_where_they_are_asked_for(
    name: str, data: bytes, kind: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(data)
    for files_as in ("text", "bytes"):
        (record,) = records_of(tmp_path, files_as=files_as)
        assert isinstance(record, Dropped)
        assert (record.reason, record.input_bytes) == ("compressed", len(data))
        assert record.detail == f"byte 0: {kind} without JSON lines; decompress it"
    (document,) = records_of(tmp_path, files_as="bytes", compressed="keep")
    assert isinstance(document, Document)
    assert document.utf8 == data


def test_a_file_that_cannot_be_opened_has_the_format_of_its_name(tmp_path: Path) -> None:
    assert format_of_file(str(tmp_path / "none.jsonl.gz"), text_field="text") == ".jsonl.gz"
    assert format_of_file(str(tmp_path / "none.json"), text_field="text") == "file"
