"""Small files that hold gigabytes: each is read in a process that may take little more memory than it starts with."""

import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.conftest import REPOSITORY

MIB = 1 << 20
BOMB_BYTES = 1 << 30
MORE_MEMORY = 640 * MIB  # that the process may take: a record of 64 MiB, and pages of 128 MiB, several times
READ_ALL = """
import resource, sys
import pyarrow
from data_prep.sources.documents import Document, ReadOptions
from data_prep.sources.listing import list_source
from data_prep.sources.readers import read_piece

with open("/proc/self/statm") as statm:
    now = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (now + int(sys.argv[2]), now + int(sys.argv[2])))
for piece in list_source(sys.argv[1], extensions=["*"], piece_bytes=1 << 26).pieces:
    for record in read_piece(piece, ReadOptions(files_as=sys.argv[3])):
        print("document" if isinstance(record, Document) else record.reason)
"""


def _chunks(start: bytes, end: bytes) -> Iterator[bytes]:
    yield start
    yield from [bytes(MIB) if not start else b"0" * MIB] * (BOMB_BYTES // MIB)
    yield end


def _compressed(path: Path, start: bytes = b"", end: bytes = b"") -> None:
    """Write a gigabyte as one line, compressed as the file's name says."""
    is_gz = path.suffix == ".gz"
    compressor = zlib.compressobj(1, wbits=31) if is_gz else zstandard.ZstdCompressor(1).compressobj()
    with path.open("wb") as file:
        for chunk in _chunks(start, end):
            file.write(compressor.compress(chunk))
        file.write(compressor.flush())


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(BOMB_BYTES)


def _large_value(path: Path) -> None:
    table = pa.table({"text": ["x" * (300 * MIB), "y"]})
    pq.write_table(table, path, compression="zstd", use_dictionary=False, row_group_size=1, write_statistics=False)


def _repeated_value(path: Path) -> None:
    """Write 200 rows of 8 MB, which are one entry of a dictionary."""
    values = pa.DictionaryArray.from_arrays(pa.array([0] * 200, type=pa.int32()), pa.array(["x" * (8 * MIB)]))
    limit = {"dictionary_pagesize_limit": 64 * MIB, "write_statistics": False}
    pq.write_table(pa.table({"text": values}), path, compression="zstd", **limit)


BOMBS = {
    "zeros.jsonl.gz": (_compressed, ["too_large"]),
    "zeros.jsonl.zst": (_compressed, ["too_large"]),
    "text.jsonl.gz": (lambda path: _compressed(path, b'{"text": "', b'"}\n{"text": "x"}\n'), ["too_large", "document"]),
    "text.json.zst": (lambda path: _compressed(path, b'[{"text": "', b'"}]'), ["compressed"]),
    "number.json.gz": (lambda path: _compressed(path, b'[{"text": "a"}, 1', b"]"), ["document", "bad_json"]),
    "zeros.jsonl": (_sparse, ["too_large"]),
    "text.gz": (_compressed, ["compressed"]),
    "large.parquet": (_large_value, ["too_large", "document"]),
    "repeated.parquet": (_repeated_value, ["document"] * 200),
}


@pytest.mark.parametrize("name", BOMBS)
def test_memory_is_bounded_whatever_a_file_holds(name: str, tmp_path: Path) -> None:
    write, expected = BOMBS[name]
    write(tmp_path / name)
    words = [sys.executable, "-c", READ_ALL, str(tmp_path / name), str(MORE_MEMORY), "bytes"]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, expected), done.stderr


@pytest.mark.parametrize("files_as", ["text", "bytes"])
def test_a_file_of_a_terabyte_is_counted_unread(files_as: str, tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(1 << 40)
    words = [sys.executable, "-c", READ_ALL, str(tmp_path), str(MORE_MEMORY), files_as]
    done = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["too_large"]), done.stderr
