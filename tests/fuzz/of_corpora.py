"""Readers of corpora: records, files, data sets, benchmarks against which documents are compared, and task files."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from common.command_line import UserError
from data_prep.sources.documents import Document, Piece, ReadOptions, Selection
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece
from tests.fuzz import mutations
from tests.fuzz.reader import Folder, Reader
from tests.helpers.own_problems import HUMANEVAL

_ROWS = [{"text": f"def f{n}(x):\n    return x * {n}\n" * 5, "path": f"src/{n}.py", "stars": n} for n in range(4)]
_LINES = "".join(json.dumps(row) + "\n" for row in _ROWS).encode()
_CARD = b"""---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.jsonl
---
# A data set
"""
RECORDS = 256 << 20  # of zeros, which are read to their end


def _corpus(folder: Folder) -> None:
    """Write the same records in each format."""
    (folder / "lines.jsonl").write_bytes(_LINES)
    (folder / "array.json").write_text(json.dumps(_ROWS))
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(_LINES))
    (folder / "lines.jsonl.zst").write_bytes(zstandard.compress(_LINES))
    (folder / "code.py").write_bytes(b"def f(x):\n    return x\n")
    pq.write_table(pa.Table.from_pylist(_ROWS), folder / "rows.parquet")


def _read_documents(name: str) -> Callable[[Folder], None]:
    def read(folder: Folder) -> None:
        size = (folder / name).stat().st_size if (folder / name).exists() else 0
        for piece in list_source(str(folder / name), piece_bytes=max(300, size // 10)).pieces:
            for document in read_piece(piece, ReadOptions()):
                assert not isinstance(document, Document) or document.text.encode() == document.utf8

    return read


def _data_set(folder: Folder) -> None:
    """Write a folder as those of the Hub."""
    (folder / "set" / "data").mkdir(parents=True)
    (folder / "set" / "README.md").write_bytes(_CARD)
    (folder / "set" / "dataset_infos.json").write_text(json.dumps({"default": {"description": "x", "features": {}}}))
    (folder / "set" / "data" / "a.jsonl").write_bytes(_LINES)


def _check_card(folder: Folder) -> None:
    from data_prep.sources.huggingface.cards import check_card

    check_card(folder / "set")


def _list_data_set(folder: Folder) -> None:
    for piece in list_source(f"hf:{folder / 'set'}").pieces:
        list(read_piece(piece, ReadOptions()))


def _saved_set(folder: Folder) -> None:
    """Write the state of a saved data set."""
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "5b1e", "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state))


def _saved_files(folder: Folder) -> None:
    from data_prep.sources.huggingface.library import saved_files

    saved_files(folder)


def _benchmark(folder: Folder) -> None:
    """Write problems from which a corpus is cleaned."""
    lines = "".join(json.dumps(row) + "\n" for row in HUMANEVAL).encode()
    (folder / "problems.jsonl").write_bytes(lines)
    (folder / "problems.jsonl.gz").write_bytes(gzip.compress(lines))


def _load_benchmark(name: str) -> Callable[[Folder], None]:
    def read(folder: Folder) -> None:
        from data_prep.filters.decontaminate import load_benchmark

        load_benchmark(str(folder / name))

    return read


def _task_files(folder: Folder) -> None:
    """Write what the only task of a deduplication has counted."""
    for kind, counts in (
        ("seen", {"documents": 3, "contents": [7], "dropped": {"empty": 1}}),
        ("written", {"documents": 2}),
    ):
        (folder / kind).mkdir()
        (folder / kind / "00000.json").write_text(json.dumps(counts))


def _fingerprints(folder: Folder) -> None:
    """Write what is remembered of two pieces."""
    from data_prep.filters.changes import save_fingerprints

    save_fingerprints(folder / "pieces.npy", times=[1, 2], contents=[2**64 - 1, 7])


def _read_fingerprints(folder: Folder) -> None:
    from data_prep.filters.changes import Fingerprints

    pieces = [Piece("file", str(folder / f"{n}.py"), 0, 1, 1, Selection("x")) for n in range(2)]
    Fingerprints(folder / "pieces.npy", pieces).in_doubt([1, 2])


def _counts_of(folder: Folder) -> None:
    from data_prep.dedup.minhash import counts_of

    counts_of(folder, 1)


def _finished_copy(folder: Folder) -> None:
    """Write the metadata of shards that were made from standard input."""
    (folder / "metadata.json").write_text(json.dumps({"sources": [{"path": "-", "bytes": 10}]}))


def _size_then(folder: Folder) -> None:
    from data_prep.sources.standard_input import _size_then

    _size_then(Path(folder / "metadata.json"))


_gz_lines = mutations.packed(mutations.json_lines, unpack=gzip.decompress, pack=gzip.compress)
_zst_lines = mutations.packed(
    mutations.json_lines, unpack=zstandard.decompress, pack=lambda data: zstandard.compress(data)
)
READERS: dict[str, Reader] = {
    "records, .jsonl": Reader(
        file="lines.jsonl", make=_corpus, read=_read_documents("lines.jsonl"), changes=mutations.json_lines,
        most_bytes=RECORDS,
    ),
    "records, .json": Reader(
        file="array.json", make=_corpus, read=_read_documents("array.json"), most_bytes=RECORDS
    ),
    "records, .jsonl.gz": Reader(
        file="lines.jsonl.gz", make=_corpus, read=_read_documents("lines.jsonl.gz"), changes=_gz_lines,
        most_bytes=RECORDS,
    ),
    "records, .jsonl.zst": Reader(
        file="lines.jsonl.zst", make=_corpus, read=_read_documents("lines.jsonl.zst"), changes=_zst_lines,
        most_bytes=RECORDS,
    ),
    "records, .parquet": Reader(
        file="rows.parquet", make=_corpus, read=_read_documents("rows.parquet"), changes=mutations.binary
    ),
    "a file as a document": Reader(
        file="code.py", make=_corpus, read=_read_documents("code.py"), changes=mutations.binary
    ),
    "README.md of a data set": Reader(
        file="set/README.md", make=_data_set, read=_check_card, changes=mutations.binary
    ),
    "README.md of a data set, read": Reader(
        file="set/README.md", make=_data_set, read=_list_data_set, changes=mutations.binary, examples=10
    ),
    "dataset_infos.json": Reader(file="set/dataset_infos.json", make=_data_set, read=_check_card),
    "dataset_infos.json, read": Reader(
        file="set/dataset_infos.json", make=_data_set, read=_list_data_set, examples=10
    ),
    "state.json of a data set": Reader(file="state.json", make=_saved_set, read=_saved_files),
    "--decontaminate": Reader(
        file="problems.jsonl", make=_benchmark, read=_load_benchmark("problems.jsonl"), changes=mutations.json_lines,
        most_bytes=RECORDS,
    ),
    "--decontaminate, .gz": Reader(
        file="problems.jsonl.gz", make=_benchmark, read=_load_benchmark("problems.jsonl.gz"), changes=_gz_lines,
        most_bytes=RECORDS,
    ),
    "fingerprints of pieces": Reader(
        file="pieces.npy", make=_fingerprints, read=_read_fingerprints, changes=mutations.binary,
        allowed=(UserError, FileNotFoundError),
    ),
    "counts of a task": Reader(file="seen/00000.json", make=_task_files, read=_counts_of),
    "metadata.json, standard input": Reader(file="metadata.json", make=_finished_copy, read=_size_then),
}  # fmt: skip
