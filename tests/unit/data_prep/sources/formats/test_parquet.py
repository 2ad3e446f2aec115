import datetime
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.documents import Document, Dropped
from data_prep.sources.formats import parquet
from data_prep.sources.listing import list_source
from data_prep.sources.readers import BadInputError
from tests.conftest import REPOSITORY
from tests.helpers.records import byte_of, records_of, texts_of


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
    records = records_of(path, piece_bytes=piece_bytes, text_field="content")
    assert [dict(record.row) | {"content": record.text} for record in records if isinstance(record, Document)] == (
        table.to_pylist()
    )
    assert all(isinstance(record, Document) and record.utf8 == record.text.encode() for record in records)
    assert [record.source for record in records] == [f"{path}:row {i}" for i in range(300)]
    assert sum(record.input_bytes for record in records) == path.stat().st_size == sum(piece.size for piece in pieces)
    projected = records_of(path, text_field="content", fields=("lang", "no_such"))
    assert {tuple(record.row) for record in projected if isinstance(record, Document)} == {("lang", "content")}
    assert texts_of(projected) == texts_of(records)


def test_parquet_with_values_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    binary = pa.array([b"good", b"caf\xe9", None, "é".encode()], type=pa.binary())
    strings = pa.array(["x", "y", "x", None]).dictionary_encode()
    pq.write_table(pa.table({"text": binary, "category": strings, "number": [1, 2, 3, 4]}), path)
    assert texts_of(records_of(path)) == ["good", "<not_utf8>", "<text_not_a_string>", "é"]
    assert texts_of(records_of(path, text_field="category")) == ["x", "y", "x", "<text_not_a_string>"]
    assert texts_of(records_of(path, text_field="number")) == ["<text_not_a_string>"] * 4
    missing = records_of(path, text_field="content", fields=())
    assert texts_of(missing) == ["<no_text_field>"]
    assert isinstance(missing[0], Dropped)
    assert (missing[0].documents, missing[0].input_bytes) == (4, path.stat().st_size)
    assert "no key 'content' among 'text', 'category', 'number'" in missing[0].detail


def test_only_the_damaged_row_group_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = _table(300)
    pq.write_table(table, path, row_group_size=100)
    column = pq.read_metadata(path).row_group(1).column(3)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 200] = b"\xff" * 200
    path.write_bytes(data)
    records = records_of(path, text_field="content", piece_bytes=1)
    texts = table["content"].to_pylist()
    assert texts_of(records) == [*texts[:100], "<corrupt_parquet>", *texts[200:]]
    bad = records[100]
    assert isinstance(bad, Dropped)
    assert (bad.source, bad.documents) == (f"{path}:row 100", 100)
    first = pq.read_metadata(path).row_group(1).column(0)
    assert f"from byte {first.dictionary_page_offset or first.data_page_offset}:" in bad.detail
    assert sum(record.input_bytes for record in records) == len(data)
    with pytest.raises(BadInputError, match=r"a\.parquet:row 100: corrupt_parquet \(row group 1, from byte \d+: "):
        records_of(path, text_field="content", bad_input="refuse")
    for damaged in (bytes(data[:-50]), b"", b"PAR1 and no more"):
        path.write_bytes(damaged)
        assert texts_of(records_of(path, text_field="content")) == ["<corrupt_parquet>"]
        assert byte_of(records_of(path)[0]) == len(damaged)


def test_only_wanted_columns_are_read(tmp_path: Path) -> None:
    """A value that Python cannot hold, or a damaged page, in a column that nobody asked for harms no document."""
    path, texts = tmp_path / "a.parquet", ["one", "two", "three"]
    years = pa.array([0, 4 * 10**14, 0], type=pa.timestamp("ms"))  # the second is the year 14645
    bad_text = pa.array([b"fine", b"\xff", b"fine"]).view(pa.string())
    pq.write_table(pa.table({"text": texts, "crawled": years, "path": bad_text, "lang": ["c"] * 3}), path)
    assert texts_of(records_of(path, fields=("lang",))) == texts
    everything = records_of(path)
    assert texts_of(everything) == texts
    rows = [record.row for record in everything if isinstance(record, Document)]
    assert [row["path"] for row in rows] == ["fine", "\\xff", "fine"]
    assert rows[1]["crawled"] == "14645-06-30 15:06:40.000"
    assert rows[0]["crawled"] == rows[2]["crawled"] == datetime.datetime(1970, 1, 1)

    chunk = pq.read_metadata(path).row_group(0).column(1)
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    assert texts_of(records_of(path, fields=("lang",))) == texts
    assert texts_of(records_of(path)) == ["<corrupt_parquet>"]


def test_each_file_has_its_own_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"stars": [3], "text": ["b"]}), tmp_path / "2.parquet")
    pq.write_table(pa.table({"text": pa.array([b"c"], type=pa.binary())}), tmp_path / "3.parquet")
    assert texts_of(records_of(tmp_path)) == ["a", "b", "c"]


def test_a_large_page_is_counted_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, texts = tmp_path / "a.parquet", ["a", "b" * 50_000, "c", "d" * 9000]
    pq.write_table(pa.table({"text": texts}), path, row_group_size=2, compression="zstd", use_dictionary=False)
    monkeypatch.setattr(parquet, "_MOST_PAGE_BYTES", 20_000)
    monkeypatch.setattr(parquet, "MOST_RECORD_BYTES", 8000)
    records = records_of(path)
    assert texts_of(records) == ["<too_large>", "c", "<too_large>"]
    assert [record.documents for record in records if isinstance(record, Dropped)] == [2, 1]
    assert sum(record.input_bytes for record in records) == path.stat().st_size
    monkeypatch.setattr(parquet, "_MOST_BYTES_AT_ONCE", 100)  # one row at a time
    assert texts_of(records_of(path)) == texts_of(records)


READ_EVERY_CHANGE = """
import sys
from pathlib import Path
from data_prep.sources.documents import ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece

path = Path(sys.argv[1])
whole = path.read_bytes()
start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
for place in range(start, len(whole)):
    for bits in (1, 0x10, 0xFF):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ bits]) + whole[place + 1 :])
        for piece in list_source(str(path)).pieces:
            for record in read_piece(piece, ReadOptions(fields=("lang",))):
                assert record.input_bytes >= 0
print("all are read")
"""


def test_no_damage_to_the_metadata_ends_the_process(tmp_path: Path) -> None:
    """pyarrow's own access to the metadata of a column aborts for some of these."""
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["a", None, "c"], "licences": [["mit"], [], None], "lang": ["c", "c", "d"]})
    pq.write_table(table, path, compression="zstd", data_page_version="2.0")
    words = [sys.executable, "-c", READ_EVERY_CHANGE, str(path)]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "all are read\n"), done.stderr
