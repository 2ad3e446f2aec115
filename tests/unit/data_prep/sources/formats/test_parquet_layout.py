"""The layout of Parquet files against what pyarrow says of it, and the layout of damaged files."""

import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.documents import Dropped
from data_prep.sources.formats.parquet_layout import Chunk, page_bytes, row_groups_of
from tests.helpers.records import records_of

TABLE = pa.table(
    {
        "text": ["".join(random.Random(i).choices("abcd ", k=i % 900)) for i in range(3000)],
        "language": ["python", "c", None] * 1000,
        "licences": [["mit"], [], ["mit", "apache-2.0"]] * 1000,
        "n": list(range(3000)),
    }
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"compression": "zstd"},
        {"compression": "none", "use_dictionary": False},
        {"data_page_version": "2.0", "data_page_size": 2000},
        {"write_page_checksum": True, "write_page_index": True},
    ],
)
def test_the_pages_of_a_column_add_up(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path, row_group_size=1100, **options)
    metadata = pq.read_metadata(path)
    with path.open("rb") as file:
        groups = row_groups_of(file)
        assert [group.n_rows for group in groups] == [1100, 1100, 800]
        for number, group in enumerate(groups):
            expected = metadata.row_group(number)
            assert group.decompressed_bytes == expected.total_byte_size
            for i, chunk in enumerate(group.chunks):
                column = expected.column(i)
                start = column.dictionary_page_offset or column.data_page_offset
                assert (chunk.path, chunk.start, chunk.problem) == (column.path_in_schema, start, "")
                assert chunk.stop - chunk.start == column.total_compressed_size
                sizes = list(page_bytes(file, chunk))
                headers = chunk.decompressed_bytes - sum(sizes)
                assert chunk.decompressed_bytes == column.total_uncompressed_size
                assert 0 < headers < 2000 * len(sizes)  # of which statistics are the most


def test_a_manifest_names_no_other_files(tmp_path: Path) -> None:
    """The columns in `_metadata` of a folder lie in its other files, or wherever somebody says."""
    collected: list[Any] = []
    pq.write_to_dataset(TABLE.select(["text"]), tmp_path / "set", metadata_collector=collected)
    collected[0].set_file_path("../secret.parquet")
    pq.write_metadata(TABLE.select(["text"]).schema, tmp_path / "manifest.parquet", metadata_collector=collected)
    with (tmp_path / "manifest.parquet").open("rb") as file:
        (group,) = row_groups_of(file)
        assert "the column 'text' lies in another file, b'../secret.parquet'" in group.chunks[0].problem
    (lost,) = records_of(tmp_path / "manifest.parquet")
    assert isinstance(lost, Dropped)
    assert (lost.reason, lost.documents) == ("corrupt_parquet", TABLE.num_rows)
    assert "../secret.parquet" in lost.detail


@pytest.mark.parametrize("element", [b"\x19", b"\x1b\x01\x99", b"\x1c\x19"])  # a list, a map, a structure in each other
def test_deep_nesting_is_one_error(element: bytes, tmp_path: Path) -> None:
    """Lists of lists, maps of lists and structures of lists, each with one element, thousands of levels deep."""
    (tmp_path / "pages").write_bytes(b"\x19" + element * 20_000)
    with (tmp_path / "pages").open("rb") as file, pytest.raises(ValueError, match="nested too deep"):
        list(page_bytes(file, Chunk("text", 0, 60_000)))


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_any_bytes_are_a_layout_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    footer = data.draw(st.binary(max_size=300))
    start = data.draw(st.binary(max_size=100))
    path = tmp_path_factory.getbasetemp() / "layout"
    path.write_bytes(start + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with path.open("rb") as file, suppress(ValueError):
        row_groups_of(file)
    with path.open("rb") as file, suppress(ValueError):
        assert all(size >= 0 for size in page_bytes(file, Chunk("text", 0, path.stat().st_size)))
