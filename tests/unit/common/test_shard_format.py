"""The shard format's one owner: metadata and indexes that are no such thing are named, and so is each damaged file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from common.command_line import UserError
from common.shard_format import DamagedShardError, content_fault, file_fault, hash_algorithm, read_index, read_metadata

CONTENT = b"windows"


def stored_metadata(folder: Path, **changes: Any) -> None:
    counts = {"documents": 1, "tokens": 9, "windows": 2}
    metadata = {
        "format_version": 1, "seq_len": 4, "lookahead": 2, "vocab_size": 258,
        "tokenizer": {"kind": "bytes", "sha256": ""}, "splits": {"train": counts},
    }  # fmt: skip
    (folder / "metadata.json").write_text(json.dumps(metadata | changes))


def entry(**changes: Any) -> dict[str, Any]:
    file = {"basename": "part-00000/shard.00000.mds", "bytes": 7, "hashes": {"xxh64": "0" * 16}}
    return {"samples": 2, "raw_data": file, "zip_data": None} | changes


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
        ('{"format_version": 1, "seq', "is not metadata of shards (JSONDecodeError"),
        ("{}", "is not metadata of shards (KeyError('format_version')); write the shards again"),
        ("[]", "is not metadata of shards (TypeError"),
        ("\udcff", "is not metadata of shards (UnicodeDecodeError"),
        ('{"format_version": 2}', "has format_version=2, but this code reads 1"),
        ('{"format_version": 1}', "is not metadata of shards (KeyError('seq_len')); write the shards again"),
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
        ({"tokenizer": {"kind": "bytes", "sha256": 1}}, "tokenizer.sha256 is 1"),
        ({"splits": ["train"]}, "AttributeError"),
        ({"splits": {"train": {"documents": 1, "tokens": 9}}}, "KeyError('windows')"),
        ({"splits": {"val": {"documents": 1, "tokens": -9, "windows": 2}}}, "splits.val.tokens is -9"),
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
        ("{", "is not an index of shards (JSONDecodeError"),
        ("[]", "is not an index of shards (TypeError"),
        ('{"shards": [7]}', "is not an index of shards (TypeError"),
        ('{"shards": [{"samples": 3, "raw_data": {}}]}', "is not an index of shards (KeyError('basename'))"),
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
        ({"raw_meta": {**entry()["raw_data"], "basename": ".."}}, "names the file '..', which is not a path inside"),
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
    assert fault == "s3://bucket/file cannot be read (Is a directory)"


def test_a_hash_without_a_length_of_its_own_is_not_compared() -> None:
    assert hash_algorithm({"shake_128": "0", "unheard_of": "0"}) is None
    assert hash_algorithm({"xxh64": "0", "sha1": "0"}) == "sha1"
