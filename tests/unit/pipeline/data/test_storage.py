"""Shards in S3 compared with the same shards on a disk, and corrupt, removed or missing files on the way."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from common import s3 as s3_folders
from common.command_line import UserError
from common.s3 import S3Path
from common.shard_format import read_metadata
from data_prep import upload_shards
from pipeline.config.schema import Config, DataConfig
from pipeline.config.shard_folder import local_folder, remote_split
from pipeline.data.sample_record import NOTHING
from tests.helpers.batches import config_for, training_data, write_split
from tests.helpers.s3_server import NOWHERE, S3Server

PREFIX, LENGTH, PER_SHARD, N_SHARDS = "some/where", 7, 5, 10


@pytest.fixture
def name(s3: S3Server) -> str:
    return f"s3://{s3.bucket}/{PREFIX}"


def _write(root: Path, byte_shards: Path, *, compression: str | None) -> None:
    """Write a finished folder of ten shards; window w holds 10 w, 10 w + 1, ..."""
    write_split(root / "train", sizes=[PER_SHARD] * N_SHARDS, length=LENGTH, compression=compression)
    metadata = read_metadata(byte_shards)
    metadata["splits"] = {"train": metadata["splits"]["train"]}
    (root / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(params=[None, "zstd"])
def root(request: pytest.FixtureRequest, tmp_path: Path, byte_shards: Path, s3: S3Server, name: str) -> Path:
    """Shards on a disk, with a copy in S3."""
    _write(tmp_path / "shards", byte_shards, compression=request.param)
    upload_shards.main([str(tmp_path / "shards"), name])
    s3.take_sent()
    return tmp_path / "shards"


def _data(name: str, tmp_path: Path) -> DataConfig:
    return DataConfig(shards=name, cache=str(tmp_path / "cache"))


def _open(data: DataConfig, **options: Any) -> Any:
    from pipeline.data.dataset import ShardFolder

    folder = local_folder(data) / "train"
    return ShardFolder(folder, remote=remote_split(data, "train"), batch_size=1, **options)


def _key(root: Path, shard: int) -> str:
    (path,) = (root / "train" / f"part-{shard}").glob("shard.*")
    return f"{PREFIX}/train/part-{shard}/{path.name}"


def _tokens(window: int) -> list[int]:
    return list(range(10 * window, 10 * window + LENGTH))


def _assert_all_windows_are_right(dataset: Any) -> None:
    samples = [dataset[index] for index in range(N_SHARDS * PER_SHARD)]
    assert [sample.tokens_W.tolist() for sample in samples] == [_tokens(index) for index in range(len(samples))]
    assert all(sample.fault == "" for sample in samples)


def test_a_corrupt_answer_is_fetched_again_and_the_cache_is_used(
    root: Path, name: str, tmp_path: Path, s3: S3Server
) -> None:
    s3.corrupt(_key(root, 3), times=1)
    _assert_all_windows_are_right(_open(_data(name, tmp_path)))
    sent = s3.take_sent()
    assert (sent.count(_key(root, 3)), sent.count(_key(root, 4))) == (2, 1)
    cache = local_folder(_data(name, tmp_path)) / "train"
    assert [path.name for path in (cache / "part-4").iterdir()] == ["shard.00000.mds"]  # not the compressed one

    damaged = cache / "part-4" / "shard.00000.mds"
    data = bytearray(damaged.read_bytes())
    data[-1] ^= 1
    damaged.write_bytes(data)
    (cache / "part-5" / "shard.00000.mds").unlink()
    _assert_all_windows_are_right(_open(_data(name, tmp_path)))
    assert [key for key in s3.take_sent() if "/shard." in key] == [_key(root, 4), _key(root, 5)]


def test_a_shard_that_stays_corrupt_or_is_missing_is_damaged(
    root: Path, name: str, tmp_path: Path, s3: S3Server
) -> None:
    s3.corrupt(_key(root, 2), times=1000)
    s3.client().delete_object(Bucket=s3.bucket, Key=_key(root, 6))
    dataset = _open(_data(name, tmp_path))
    for shard, fault in ((2, " has the xxh64 hash "), (6, " is missing")):
        sample = dataset[shard * PER_SHARD + 1]
        window = (shard + 1) * PER_SHARD + 1  # of the next shard
        assert (sample.read_id, sample.tokens_W.tolist()) == (window, _tokens(window))
        assert sample.fault.startswith(f"s3://{s3.bucket}/{_key(root, shard)}{fault}")
        assert not list((tmp_path / "cache").rglob(f"part-{shard}/*"))


def _lowest_limit(root: Path) -> int:
    """Return the bytes of four shards, decompressed and compressed, and the index."""
    index = root / "train" / "index.json"
    entries = json.loads(index.read_text())["shards"]
    largest = max(sum(entry[key]["bytes"] for key in ("raw_data", "zip_data") if entry[key]) for entry in entries)
    return index.stat().st_size + 4 * largest


def test_a_small_cache_stays_within_its_limit(root: Path, name: str, tmp_path: Path, s3: S3Server) -> None:
    limit = _lowest_limit(root)
    index_bytes = (root / "train" / "index.json").stat().st_size
    dataset = _open(_data(name, tmp_path), cache_limit=limit)
    cache = local_folder(_data(name, tmp_path)) / "train"
    for index in [*range(0, N_SHARDS * PER_SHARD, 3), *range(0, N_SHARDS * PER_SHARD, 4)]:
        assert dataset[index].tokens_W.tolist() == _tokens(index)
        assert sum(path.stat().st_size for path in cache.rglob("shard.*")) + index_bytes <= limit
    assert s3.take_sent().count(_key(root, 0)) == 2
    with pytest.raises(UserError, match=r"data\.cache_limit_gb=1e-09 is too low: these shards need "):
        _open(_data(name, tmp_path), cache_limit=1)
    with pytest.raises(UserError, match=rf"these shards need {limit / 1e9:g}"):
        _open(_data(name, tmp_path), cache_limit=limit - 1)


def test_different_shards_in_one_cache_do_not_mix(
    name: str, s3: S3Server, tmp_path: Path, byte_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "shards", byte_shards, compression=None)
    folders = set()
    for version in range(2):  # the second version replaces the first
        metadata = json.loads((tmp_path / "shards" / "metadata.json").read_text())
        (tmp_path / "shards" / "metadata.json").write_text(json.dumps({**metadata, "written": version}))
        for key in s3.modified():
            s3.client().delete_object(Bucket=s3.bucket, Key=key)
        upload_shards.main([str(tmp_path / "shards"), name])
        from pipeline.config import shard_folder

        shard_folder._mirror.cache_clear()  # as in another process
        folders.add(local_folder(_data(name, tmp_path)))
        _assert_all_windows_are_right(_open(_data(name, tmp_path)))
    assert len(folders) == 2


def _batches(config: Config, *, at: dict[str, Any] | None = None) -> Iterator[tuple[list[Any], dict[str, Any]]]:
    """Yield the content of each batch, and the position after it."""
    data = training_data(config)
    if at is not None:
        data.load_state_dict(at)
    for batch in data:
        yield [batch.tokens_BT.tolist(), batch.ids_B, data.take_consumed()], data.state_dict()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_reads_the_same_from_both_and_can_switch(
    num_workers: int, name: str, byte_shards: Path, tmp_path: Path, s3: S3Server,
    pipeline_log: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    _write(tmp_path / "shards", byte_shards, compression="zstd")
    upload_shards.main([str(tmp_path / "shards"), name])
    config = config_for(tmp_path / "shards", num_workers=num_workers)
    expected = list(islice(_batches(config), 15))
    there = replace(config, data=replace(config.data, shards=name, cache=str(tmp_path / "cache")))
    assert list(islice(_batches(there), 15)) == expected
    s3.take_sent()
    limit_gb = (_lowest_limit(tmp_path / "shards") + 0.5) / 1e9
    limited = replace(there, data=replace(there.data, cache=str(tmp_path / "small"), cache_limit_gb=limit_gb))
    resumed = list(islice(_batches(limited, at=expected[6][1]), 8))
    assert f"data.cache_limit_gb={int(limit_gb * 1e9) / 1e9:g} is less than the " in pipeline_log.text
    assert resumed == expected[7:]
    fetched = {key for key in s3.take_sent() if "/shard." in key}
    assert len(fetched) > len(list((tmp_path / "small").rglob("shard.*")))  # some were removed to make room for others


@pytest.mark.parametrize(
    ("canonical_nodes", "block", "nodes", "expected"),
    [(1, 5, 1, 50), (2, 5, 1, 100), (2, 5, 2, 50), (1, 1000, 1, 1000), (3, 1000, 2, 680), (64, 10, 1, 1000)],
)
def test_bytes_that_a_shuffle_reads_from_at_a_time(canonical_nodes: int, block: int, nodes: int, expected: int) -> None:
    """100 windows of 10 bytes; in the fifth case two nodes have 2 and 1 canonical nodes of 34 windows."""
    from pipeline.data.storage import bytes_read_from_at_a_time

    assert expected == bytes_read_from_at_a_time(
        1000, n_windows=100, canonical_nodes=canonical_nodes, shuffle_block_size=block, n_nodes=nodes
    )


def test_unreachable_storage_ends_the_search_at_once(
    byte_shards: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.data import storage

    _write(tmp_path / "shards", byte_shards, compression=None)
    upload_shards.main([str(tmp_path / "shards"), name])
    dataset = _open(_data(name, tmp_path))
    assert dataset[0].tokens_W.tolist() == _tokens(0)
    attempts: list[S3Path] = []
    download = S3Path.download

    def counted(file: S3Path, path: Path) -> None:
        attempts.append(file)
        download(file, path)

    monkeypatch.setattr(S3Path, "download", counted)
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", NOWHERE)
        patch.setattr(s3_folders, "_PERSISTENT", replace(s3_folders._PERSISTENT, attempts=1))
        samples = [dataset[shard * PER_SHARD] for shard in (2, 4, 6)]
    for sample in samples:
        assert sample.read_id == NOTHING
        assert f"{name}/train/part-2/shard.00000.mds cannot be reached: Could not connect" in sample.fault
    assert len(attempts) == 1
    assert dataset[1].tokens_W.tolist() == _tokens(1)  # from the cache
    monkeypatch.setattr(storage, "_REST_S", 0.0)
    assert dataset[5 * PER_SHARD].tokens_W.tolist() == _tokens(5 * PER_SHARD)  # the storage answers again


def test_mistakes(s3: S3Server, name: str, tmp_path: Path, byte_shards: Path) -> None:
    with pytest.raises(UserError, match=r"needs data\.cache, a folder on each node's own disk"):
        local_folder(DataConfig(shards=name))
    with pytest.raises(UserError, match=r"data\.cache=c is for s3:// only, but data\.shards=here is read in place"):
        local_folder(DataConfig(shards="here", cache="c"))
    with pytest.raises(UserError, match=r"only s3://bucket/prefix is supported"):
        local_folder(DataConfig(shards="gs://bucket/x", cache="c"))
    with pytest.raises(UserError, match=r"there is no bucket s3://nowhere-at-all"):
        local_folder(_data("s3://nowhere-at-all/x", tmp_path))
    with pytest.raises(UserError, match=rf"{name}/metadata\.json does not exist: the folder was not written by"):
        local_folder(_data(name, tmp_path))
    s3.client().put_object(Bucket=s3.bucket, Key=f"{PREFIX}/metadata.json", Body=b"[]")
    with pytest.raises(UserError, match=rf"{name}/metadata\.json is not metadata of shards"):
        local_folder(_data(name, tmp_path))
    upload_shards.main([str(byte_shards), f"{name}/shards"])
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=rf"data\.cache={tmp_path}/cache cannot be written: "):
        local_folder(_data(f"{name}/shards", tmp_path))
    s3.client().delete_object(Bucket=s3.bucket, Key=f"{PREFIX}/shards/val/index.json")
    with pytest.raises(UserError, match=r"/val/index\.json does not exist; write the shards again"):
        local_folder(DataConfig(shards=f"{name}/shards", cache=str(tmp_path / "other")))
