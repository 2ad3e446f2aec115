"""The shard format's one owner: metadata and indexes that are no such thing are named, and so is each damaged file."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
import xxhash

from common.command_line import UserError
from common.shard_format import (
    DamagedShardError,
    content_fault,
    file_fault,
    hash_algorithm,
    read_index,
    read_metadata,
    read_shard_file,
)

CONTENT = b"windows"
TOKENIZER = {"kind": "bytes", "sha256": "", "bos_id": 256, "eos_id": 257}


def stored_metadata(folder: Path, **changes: Any) -> None:
    counts = {"documents": 1, "tokens": 9, "windows": 2, "bytes": 8}
    metadata = {
        "format_version": 1, "seq_len": 4, "lookahead": 2, "vocab_size": 258, "tokenizer": TOKENIZER,
        "splits": {"train": counts},
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata | changes))


def entry(**changes: Any) -> dict[str, Any]:
    file = {"basename": "part-00000/shard.00000.mds", "bytes": 100, "hashes": {"xxh64": "0" * 16}}
    return {
        "version": 2, "format": "mds", "compression": "zstd:3", "hashes": ["xxh64"], "size_limit": 1 << 26,
        "column_names": ["tokens"], "column_encodings": ["ndarray:uint16:6"], "column_sizes": [12],
        "samples": 2, "raw_data": file, "zip_data": None,
    } | changes  # fmt: skip


def stored_index(folder: Path, *entries: dict[str, Any]) -> None:
    (folder / "index.json").write_text(json.dumps({"version": 2, "shards": list(entries)}))


def test_metadata_that_is_whole(tmp_path: Path) -> None:
    stored_metadata(tmp_path, sources=["x"])
    assert read_metadata(tmp_path)["sources"] == ["x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            None,
            "does not exist: the folder was not written by data_prep.write_shards, or is not finished (run the same",
        ),
        ('{"format_version": 1, "seq', "is not metadata of shards: it is not JSON: "),
        ("{}", "is not metadata of shards: KeyError('format_version'); write the shards again"),
        ("[]", "is not metadata of shards: TypeError"),
        ("\udcff", "is not metadata of shards: it is not JSON: "),
        ('{"format_version": 1, "seq_len": NaN}', "is not metadata of shards: it holds nan, which is not a finite"),
        ("[" * 10**5, "is not metadata of shards: it is nested deeper than 64 levels"),
        ('{"format_version": 2}', "has format_version=2, but this code reads 1"),
        ('{"format_version": 1}', "is not metadata of shards: KeyError('seq_len'); write the shards again"),
    ],
)
def test_metadata_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "metadata.json"
    if text is not None:
        path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as error:
        read_metadata(tmp_path)
    assert str(error.value).startswith(f"{path} {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "seq_len is 0"),
        ({"lookahead": "2"}, "lookahead is '2'"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"tokenizer": {"kind": "bytes"}}, "KeyError('sha256')"),
        ({"tokenizer": {**TOKENIZER, "eos_id": 258}}, "tokenizer.eos_id is 258"),
        ({"vocab_size": 1 << 17}, "vocab_size is 131072"),
        ({"document_ends": 7}, "document_ends is 7"),
        ({"fim": {"sentinels": {"prefix": -1}}}, "fim.sentinels.prefix is -1"),
        ({"tokenizer": {**TOKENIZER, "sha256": 1}}, "tokenizer.sha256 is 1"),
        ({"splits": ["train"]}, "AttributeError"),
        ({"splits": {"train": {"documents": 1, "tokens": 9}}}, "KeyError('windows')"),
        ({"splits": {"val": {"documents": 1, "tokens": -9, "windows": 2, "bytes": 8}}}, "splits.val.tokens is -9"),
        ({"splits": {"../val": {}}}, "names the file '../val', which is not a path inside"),
    ],
)
def test_metadata_with_values_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    stored_metadata(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        read_metadata(tmp_path)
    assert str(error.value).startswith(str(tmp_path / "metadata.json"))
    assert message in str(error.value)


def test_an_index_that_is_whole(tmp_path: Path) -> None:
    compressed = {"basename": "part-00001/shard.00000.mds.zstd", "bytes": 5, "hashes": {"xxh64": "1" * 16}}
    entries = [entry(), entry(zip_data=compressed)]
    stored_index(tmp_path, *entries)
    assert read_index(tmp_path) == read_index(tmp_path, strict=True) == entries


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing; write the shards again"),
        ("{", "is not an index of shards: it is not JSON: "),
        ("[]", "is not an index of shards: TypeError"),
        ('{"version": 2, "shards": [7]}', "is not an index of shards: TypeError"),
        ('{"version": 1, "shards": []}', "is not an index of shards: ValueError('version is 1')"),
        (
            '{"version": 2, "shards": [{"samples": 3, "raw_data": {}, "zip_data": null}]}',
            "is not an index of shards: KeyError('basename')",
        ),
    ],
)
def test_an_index_that_cannot_be_used(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "index.json").write_text(text)
    with pytest.raises(DamagedShardError) as error:
        read_index(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'index.json'} {message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": -1}, "samples is -1"),
        ({"samples": "2"}, "samples is '2'"),
        ({"raw_data": {**entry()["raw_data"], "bytes": 1 << 32}}, "bytes of part-00000/shard.00000.mds is 4294967296"),
        ({"raw_data": {**entry()["raw_data"], "hashes": {"xxh64": 7}}}, "xxh64 of part-00000/shard.00000.mds is 7"),
        ({"raw_data": {**entry()["raw_data"], "hashes": []}}, "AttributeError"),
        ({"zip_data": {**entry()["raw_data"], "basename": "/x"}}, "names the file '/x', which is not a path inside"),
        ({"raw_meta": None}, "KeyError('raw_meta')"),
        ({"raw_data": {**entry()["raw_data"], "x": 1}}, "KeyError('x')"),
        ({"format": "json"}, "format is 'json'"),
        ({"version": 1}, "version is 1"),
        ({"size_limit": "100mb"}, "size_limit is '100mb'"),
        ({"zip_data": entry()["raw_data"], "compression": "br:11"}, "compression is 'br:11', not one of zstd, gz, bz2"),
        ({"zip_data": entry()["raw_data"], "compression": None}, "AttributeError"),
        ({"column_encodings": ["pkl"]}, "column 'tokens' has the encoding 'pkl' and the size 12"),
        ({"column_encodings": ["ndarray:uint16"]}, "column 'tokens' has the encoding 'ndarray:uint16' and the size 12"),
        ({"column_sizes": [None]}, "and the size None"),
        ({"column_sizes": []}, "ValueError"),
        ({"column_names": ["x"]}, "the columns are ['x']"),
        ({"samples": 7}, "7 windows do not fit into the 100 bytes of part-00000/shard.00000.mds"),
    ],
)
def test_an_entry_with_values_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    stored_index(tmp_path, entry(), entry(**changes))
    with pytest.raises(UserError) as error:
        read_index(tmp_path)
    assert message in str(error.value)


@pytest.mark.parametrize("changes", [{"samples": 0}, {"raw_data": {**entry()["raw_data"], "hashes": {"md5": "0"}}}])
def test_only_a_strict_reader_refuses_what_other_writers_write(tmp_path: Path, changes: dict[str, Any]) -> None:
    stored_index(tmp_path, entry(**changes))
    assert read_index(tmp_path) == [entry(**changes)]
    with pytest.raises(DamagedShardError, match="is not an index of shards"):
        read_index(tmp_path, strict=True)


@pytest.mark.parametrize("algorithm", ["xxh64", "xxh3_64", "sha1", "md5", None])
def test_files_and_their_content_are_compared_alike(tmp_path: Path, algorithm: str | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    constructor = getattr(xxhash, algorithm or "", None) or getattr(hashlib, algorithm or "md5")
    expected = constructor(CONTENT).hexdigest()
    hashes = {algorithm: expected} if algorithm else {"unheard_of": "0"}
    assert file_fault(path, n_bytes=7, hashes=hashes) is None
    assert content_fault(CONTENT, name=path, n_bytes=7, hashes=hashes) is None
    short = f"{path} has 7 bytes, its index says 8"
    assert file_fault(path, n_bytes=8, hashes=hashes) == short
    assert content_fault(CONTENT, name=path, n_bytes=8, hashes=hashes) == short
    if algorithm:
        other = f"{path} has the {algorithm} hash {expected}, its index says 00"
        assert file_fault(path, n_bytes=7, hashes={algorithm: "00"}) == other
        assert content_fault(CONTENT, name=path, n_bytes=7, hashes={algorithm: "00"}) == other


def test_files_that_cannot_be_read_are_faults(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert file_fault(path, n_bytes=7, hashes={}) == f"{path} is missing, its index says 7 bytes"
    path.mkdir()
    n_bytes = path.stat().st_size
    fault = file_fault(path, n_bytes=n_bytes, hashes={"xxh64": "0"}, name="s3://bucket/file")
    assert fault == "s3://bucket/file cannot be read: it is a folder, not a file"


def test_a_hash_without_a_length_of_its_own_is_not_compared() -> None:
    assert hash_algorithm({"shake_128": "0", "unheard_of": "0"}) is None
    assert hash_algorithm({"xxh64": "0", "sha1": "0"}) == "sha1"


def test_a_file_of_another_size_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    hashes = {"xxh64": xxhash.xxh64_hexdigest(CONTENT)}
    assert read_shard_file(path, n_bytes=7, hashes=hashes) == CONTENT
    os.truncate(path, 40 << 30)  # a sparse file
    with pytest.raises(DamagedShardError, match=f"file has {40 << 30} bytes, its index says 7$"):
        read_shard_file(path, n_bytes=7, hashes=hashes)
    assert file_fault(path, n_bytes=7, hashes=hashes) == f"{path} has {40 << 30} bytes, its index says 7"
    path.unlink()
    with pytest.raises(DamagedShardError, match=r"file cannot be read: No such file"):
        read_shard_file(path, n_bytes=7, hashes=hashes)
    os.mkfifo(path)
    for reader in (read_shard_file, file_fault):
        try:
            fault = reader(path, n_bytes=0, hashes={"xxh64": "0"})
        except DamagedShardError as error:
            fault = str(error)
        assert fault == f"{path} cannot be read: it is a FIFO, not a file"
