"""Data sets in folders: their files are read one by one, only the wanted fields, and nothing is left out unsaid."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.command_line import UserError
from data_prep.sources.documents import Document, Dropped, ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece
from tests.helpers.records import jsonl, records_of, texts_of


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Return a folder of data files, in the layout of data sets."""
    folder = tmp_path / "dataset"
    (folder / "data").mkdir(parents=True)
    for i in range(3):
        rows = ({"text": f"document {i} {j}", "lang": "python", "id": j} for j in range(4))
        (folder / "data" / f"train-{i:05}-of-00003.jsonl").write_bytes(jsonl(*rows))
    (folder / "data" / "test-00000-of-00001.jsonl").write_bytes(jsonl({"text": "of the test", "lang": "c", "id": 0}))
    return folder


def _as_the_library_reads(folder: Path) -> list[str]:
    import datasets

    return list(datasets.load_dataset(str(folder), split="train", streaming=True).select_columns("text"))


def _kept(folder: Path, **options: Any) -> list[str]:
    return [record.text for record in records_of(f"hf:{folder}", **options) if isinstance(record, Document)]


def test_a_data_set_is_read_file_by_file(dataset: Path, tmp_path: Path) -> None:
    source = list_source(f"hf:{dataset}")
    size = (dataset / "data" / "train-00000-of-00003.jsonl").stat().st_size
    assert [(piece.path, piece.size) for piece in source.pieces] == [
        (f"{dataset}/data/train-{i:05}-of-00003.jsonl", size) for i in range(3)
    ]
    assert source.summary().keys() == {"path", "files", "bytes", "fingerprint"}
    assert (source.summary()["files"], source.summary()["bytes"]) == (3, 0)
    expected = [f"document {i} {j}" for i in range(3) for j in range(4)]
    assert expected == [row["text"] for row in _as_the_library_reads(dataset)]  # type: ignore[index]
    backwards = [texts_of(list(read_piece(piece, ReadOptions()))) for piece in reversed(source.pieces)]
    assert [text for texts in reversed(backwards) for text in texts] == expected
    records = records_of(f"hf:{dataset}", fields=("lang",))
    assert texts_of(records) == expected
    assert records[5].source == f"{dataset}/data/train-00001-of-00003.jsonl:2"
    assert texts_of(records_of(f"hf:{dataset}@test")) == ["of the test"]
    assert texts_of(records_of(f"hf:{dataset}@test", text_field="content")) == ["<no_text_field>"]
    with pytest.raises(UserError, match=r"has no split 'tset' \(it has: train, test\); did you mean 'test'"):
        list_source(f"hf:{dataset}@tset")
    with pytest.raises(UserError, match=r"input 'hf:no/such' cannot be loaded: "):
        list_source("hf:no/such")
    with pytest.raises(UserError, match=r"is a file; give it without hf:"):
        list_source(f"hf:{source.pieces[0].path}")


def test_other_formats_are_read_by_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "1.csv").write_text("id,text\n1,one\n2,two\n")
    (folder / "2.csv").write_text("id,text\n3,three\n")
    pieces = list_source(f"hf:{folder}").pieces
    assert [(piece.start, piece.stop, piece.size) for piece in pieces] == [(0, 1, 20), (1, 2, 16)]
    records = records_of(f"hf:{folder}", fields=())
    assert texts_of(records) == ["one", "two", "three"]
    assert records[2].source == f"hf:{folder}:shard 1, row 1"
    assert {tuple(record.row) for record in records if isinstance(record, Document)} == {("text",)}
    (folder / "2.csv").write_text('id,text\n3,"three\n')
    lost = records_of(f"hf:{folder}")[-1]
    assert isinstance(lost, Dropped)
    assert (lost.reason, lost.input_bytes) == ("corrupt_dataset", 17)

    import datasets

    texts = [f"document {i}" for i in range(9)]
    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": texts})})
    saved.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved", tmp_path / "saved" / "train"):
        source = list_source(f"hf:{path}")
        assert sum(piece.size for piece in source.pieces) == (next(tmp_path.glob("saved/train/*.arrow"))).stat().st_size
        assert texts_of(records_of(f"hf:{path}")) == texts


def test_one_bad_row_harms_no_other(dataset: Path) -> None:
    """A lone surrogate, a truncated last line, or a value of another type loses at most its own record."""
    expected = [f"document {i} {j}" for i in range(3) for j in range(4)]
    path = dataset / "data" / "train-00001-of-00003.jsonl"
    whole = path.read_bytes()
    for more in (
        b'{"text": "more", "lang": "\\ud800"}\n',
        b'{"text": "more", "lang": 3, "id": {"a": []}}\n',
        b'{"text": "more", "new": 1}\n{"text": "cut',
        b'{broken\n{"text": "more"}',
    ):
        path.write_bytes(whole + more)
        assert _kept(dataset, fields=("lang",)) == [*expected[:8], "more", *expected[8:]]
        lost = [record for record in records_of(f"hf:{dataset}") if isinstance(record, Dropped)]
        assert [(record.reason, record.documents) for record in lost] in ([], [("bad_json", 1)])
    path.with_suffix(".json").write_bytes(json.dumps([{"text": "in an array"}]).encode())
    path.unlink()
    assert _kept(dataset) == [*expected[:4], "in an array", *expected[8:]]


def test_files_of_a_split_may_have_other_columns_and_formats(tmp_path: Path) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), folder / "train-1.parquet")
    pq.write_table(pa.table({"text": ["b"], "stars": [5]}), folder / "train-2.parquet")
    (folder / "train-3.jsonl").write_bytes(jsonl({"text": "c"}))
    (folder / "train-4.json.gz").write_bytes(gzip.compress(jsonl({"text": "d"}, {"text": "e"})))
    (folder / "train-5.png").write_bytes(b"picture")
    (folder / "README.md").write_text("# A data set without configurations\n")
    assert sorted(texts_of(records_of(f"hf:{folder}"))) == ["a", "b", "c", "d", "e"]
    assert list_source(f"hf:{folder}").left_out == "1 .png"
    named = "---\nconfigs:\n- config_name: some\n  data_files: train-2.parquet\n---\n"
    (folder / "README.md").write_text(named)  # then only what is named belongs to the data set
    assert texts_of(records_of(f"hf:{folder}:some")) == ["b"]
    assert list_source(f"hf:{folder}:some").left_out == ""


def test_a_module_with_options_of_its_own_is_read_by_the_library(tmp_path: Path) -> None:
    folder = tmp_path / "nested"
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps({"version": 1, "data": [{"text": "a"}, {"text": "b"}]}))
    card = "---\nconfigs:\n- config_name: default\n  data_files: train.json\n  field: data\n---\n"
    (folder / "README.md").write_text(card)
    assert texts_of(records_of(f"hf:{folder}")) == ["a", "b"]
