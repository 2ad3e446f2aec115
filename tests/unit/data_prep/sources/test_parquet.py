import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.sources.documents import Document, Dropped
from data_prep.sources.listing import list_source
from data_prep.sources.readers import BadInputError
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
    assert texts_of(missing) == ["<no_text_field>"] * 4
    assert isinstance(missing[0], Dropped)
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
    assert bad.source == f"{path}:row 100"
    first = pq.read_metadata(path).row_group(1).column(0)
    assert f"from byte {first.dictionary_page_offset or first.data_page_offset}:" in bad.detail
    assert sum(record.input_bytes for record in records) == len(data)
    with pytest.raises(BadInputError, match=r"a\.parquet:row 100: corrupt_parquet \(row group 1, from byte \d+: "):
        records_of(path, text_field="content", bad_input="refuse")
    for damaged in (bytes(data[:-50]), b"", b"PAR1 and no more"):
        path.write_bytes(damaged)
        assert texts_of(records_of(path, text_field="content")) == ["<corrupt_parquet>"]
        assert byte_of(records_of(path)[0]) == len(damaged)
