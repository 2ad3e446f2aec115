"""The sizes in page headers, against what pyarrow says of the whole column, and in damaged headers."""

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.sources.formats.parquet_pages import page_bytes

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
        for group in range(metadata.num_row_groups):
            for number in range(metadata.num_columns):
                chunk = metadata.row_group(group).column(number)
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                sizes = list(page_bytes(file, start=start, stop=start + chunk.total_compressed_size))
                headers = chunk.total_uncompressed_size - sum(sizes)
                assert 0 < headers < 2000 * len(sizes)  # of which statistics are the most


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_pages_or_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "pages"
    path.write_bytes(data)
    with path.open("rb") as file:
        try:
            assert all(size >= 0 for size in page_bytes(file, start=0, stop=len(data)))
        except ValueError as error:
            assert "a page header" in str(error)  # noqa: PT017
