from pathlib import Path

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


def test_a_data_set_is_streamed_by_its_shards(dataset: Path, tmp_path: Path) -> None:
    source = list_source(f"hf:{dataset}")
    assert [(piece.start, piece.stop) for piece in source.pieces] == [(0, 1), (1, 2), (2, 3)]
    sizes = [path.stat().st_size for path in sorted((dataset / "data").glob("train-*"))]
    assert [piece.size for piece in source.pieces] == sizes
    assert source.summary() == {
        "path": f"hf:{dataset}", "files": 3, "bytes": 0, "fingerprint": source.fingerprint
    }  # fmt: skip
    expected = [f"document {i} {j}" for i in range(3) for j in range(4)]
    backwards = [texts_of(list(read_piece(piece, ReadOptions()))) for piece in reversed(source.pieces)]
    assert [text for texts in reversed(backwards) for text in texts] == expected
    records = records_of(f"hf:{dataset}", fields=("lang",))
    assert texts_of(records) == expected
    assert {tuple(record.row) for record in records if isinstance(record, Document)} == {("text", "lang")}
    assert records[5].source == f"hf:{dataset}:shard 1, row 2"
    assert texts_of(records_of(f"hf:{dataset}@test")) == ["of the test"]
    assert texts_of(records_of(f"hf:{dataset}@test", text_field="content")) == ["<no_text_field>"]
    with pytest.raises(UserError, match=r"input 'hf:.*@nothing' cannot be loaded: .*nothing"):
        list_source(f"hf:{dataset}@nothing")
    with pytest.raises(UserError, match=r"input 'hf:no/such' cannot be loaded: "):
        list_source("hf:no/such")

    import datasets

    saved = datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": expected})})
    saved.save_to_disk(str(tmp_path / "saved"))
    for path in (tmp_path / "saved", tmp_path / "saved" / "train"):
        assert texts_of(records_of(f"hf:{path}")) == expected


def test_a_damaged_shard_is_counted(dataset: Path) -> None:
    (dataset / "data" / "train-00001-of-00003.jsonl").write_bytes(b'{"text": "x", "lang": "c", "id": 1}\n{broken\n')
    records = records_of(f"hf:{dataset}")
    broken = [record for record in records if isinstance(record, Dropped)]
    assert [record.reason for record in broken] == ["corrupt_dataset"]
    assert broken[0].source == f"hf:{dataset}:shard 1"
    assert [record.text for record in records[-4:] if isinstance(record, Document)] == [
        f"document 2 {j}" for j in range(4)
    ]
