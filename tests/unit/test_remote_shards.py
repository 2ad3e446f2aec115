"""Shards that are read from S3, against the same shards on a disk; what is spoiled, removed or missing on the way."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import remote
from common.command_line import UserError
from common.remote import RemoteFolder
from data_prep import upload_shards
from pipeline import remote_shards
from pipeline.config import Config, DataConfig
from pipeline.data import NOTHING, TrainingData
from pipeline.distributed import world_from_environment
from pipeline.inputs import read_metadata
from pipeline.remote_shards import local_folder, remote_split
from tests.unit.s3_server import BUCKET, S3Server, s3_server
from tests.unit.test_data import config_for

PREFIX, WIDTH, PER_SHARD, N_SHARDS = "some/where", 7, 5, 10
REMOTE = f"s3://{BUCKET}/{PREFIX}"


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    world_from_environment()
    with s3_server() as (application, variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        remote._client.cache_clear()
        remote_shards._mirror.cache_clear()
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield application
    remote._client.cache_clear()


def _write(root: Path, byte_shards: Path, *, compression: str | None) -> None:
    """Finished shards of ten files; window w holds 10 w, 10 w + 1, ..."""
    from common.mds import streaming

    shards = []
    for part in range(N_SHARDS):
        columns = {"tokens": f"ndarray:uint16:{WIDTH}"}
        with streaming.MDSWriter(
            out=str(root / "train" / f"part-{part}"), columns=columns, compression=compression, hashes=["xxh64"]
        ) as writer:
            for window in range(part * PER_SHARD, (part + 1) * PER_SHARD):
                writer.write({"tokens": np.arange(10 * window, 10 * window + WIDTH, dtype=np.uint16)})
        (shard,) = json.loads((root / "train" / f"part-{part}" / "index.json").read_text())["shards"]
        for key in ("raw_data", "zip_data"):
            if shard[key]:
                shard[key]["basename"] = f"part-{part}/{shard[key]['basename']}"
        shards.append(shard)
    (root / "train" / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))
    metadata = read_metadata(str(byte_shards))
    metadata["splits"] = {"train": metadata["splits"]["train"]}
    (root / "metadata.json").write_text(json.dumps(metadata))


@pytest.fixture(params=[None, "zstd"])
def root(request: pytest.FixtureRequest, tmp_path: Path, byte_shards: Path) -> Path:
    _write(tmp_path / "shards", byte_shards, compression=request.param)
    upload_shards.main([str(tmp_path / "shards"), REMOTE])
    return tmp_path / "shards"


def _data(tmp_path: Path) -> DataConfig:
    return DataConfig(shards=REMOTE, cache=str(tmp_path / "cache"))


def _open(data: DataConfig, **options: Any) -> Any:
    from pipeline.shards import ShardFolder

    folder = local_folder(data) / "train"
    return ShardFolder(folder, remote=remote_split(data, "train"), batch_size=1, **options)


def _key(root: Path, shard: int) -> str:
    (path,) = (root / "train" / f"part-{shard}").glob("shard.*")
    return f"{PREFIX}/train/part-{shard}/{path.name}"


def _tokens(first: int) -> list[int]:
    return list(range(10 * first, 10 * first + WIDTH))


def test_what_is_spoiled_once_is_fetched_again_and_what_is_here_is_used(
    root: Path, tmp_path: Path, server: S3Server
) -> None:
    server.spoiled[_key(root, 3)] = 1
    dataset = _open(_data(tmp_path))
    samples = [dataset[index] for index in range(N_SHARDS * PER_SHARD)]
    assert [sample["tokens"].tolist() for sample in samples] == [_tokens(index) for index in range(len(samples))]
    assert all(sample["fault"] == "" for sample in samples)
    assert server.sent.count(_key(root, 3)) == 2
    assert server.sent.count(_key(root, 4)) == 1
    cache = local_folder(_data(tmp_path)) / "train"
    assert sorted(path.name for path in (cache / "part-4").iterdir()) == ["shard.00000.mds"]  # not the compressed one

    server.sent.clear()
    damaged = cache / "part-4" / "shard.00000.mds"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    (cache / "part-5" / "shard.00000.mds").unlink()
    again = _open(_data(tmp_path))
    assert [again[index]["tokens"].tolist() for index in range(len(samples))] == [
        _tokens(index) for index in range(len(samples))
    ]
    assert [key for key in server.sent if "/shard." in key] == [_key(root, 4), _key(root, 5)]


def test_what_stays_spoiled_is_at_fault(root: Path, tmp_path: Path, server: S3Server) -> None:
    server.spoiled[_key(root, 2)] = 1000
    sample = _open(_data(tmp_path))[2 * PER_SHARD + 1]
    assert (sample["read_id"], sample["tokens"].tolist()) == (3 * PER_SHARD + 1, _tokens(3 * PER_SHARD + 1))
    assert sample["fault"].startswith(f"s3://{BUCKET}/{_key(root, 2)} has the xxh64 ")
    assert not list((tmp_path / "cache").rglob("part-2/*"))


def test_a_small_cache_holds_no_more_than_it_may(root: Path, tmp_path: Path, server: S3Server) -> None:
    entries = json.loads((root / "train" / "index.json").read_text())["shards"]
    largest = max(sum(entry[key]["bytes"] for key in ("raw_data", "zip_data") if entry[key]) for entry in entries)
    index_bytes = (root / "train" / "index.json").stat().st_size
    limit = max(4 * largest, index_bytes + 3 * largest)
    dataset = _open(_data(tmp_path), cache_limit=limit)
    cache = local_folder(_data(tmp_path)) / "train"
    for index in [*range(0, N_SHARDS * PER_SHARD, 3), *range(0, N_SHARDS * PER_SHARD, 4)]:
        assert dataset[index]["tokens"].tolist() == _tokens(index)
        assert sum(path.stat().st_size for path in cache.rglob("shard.*")) + index_bytes <= limit
    assert server.sent.count(_key(root, 0)) == 2
    with pytest.raises(UserError, match=r"data\.cache_limit_gb=1e-09 is too low: these shards need "):
        _open(_data(tmp_path), cache_limit=1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_reads_the_same_from_both(num_workers: int, byte_shards: Path, tmp_path: Path) -> None:
    _write(tmp_path / "shards", byte_shards, compression="zstd")
    upload_shards.main([str(tmp_path / "shards"), REMOTE])
    config = config_for(tmp_path / "shards", num_workers=num_workers)

    def batches(of: Config) -> list[list[Any]]:
        return [[batch.tokens_BT.tolist(), batch.ids_B, batch.faults] for batch in islice(TrainingData(of), 15)]

    expected = batches(config)
    data = replace(config.data, shards=REMOTE, cache=str(tmp_path / "cache"))
    assert batches(replace(config, data=data)) == expected


def test_storage_that_went_away_is_a_fault_and_no_exception(
    byte_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "shards", byte_shards, compression=None)
    upload_shards.main([str(tmp_path / "shards"), REMOTE])
    dataset = _open(_data(tmp_path))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(remote, "_ATTEMPTS", 1)
    remote._client.cache_clear()
    sample = dataset[0]
    assert sample["read_id"] == NOTHING
    assert f"{REMOTE}/train/part-0/shard.00000.mds cannot be reached (Could not connect" in sample["fault"]


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs data\.cache, a folder on each node's own disk"):
        local_folder(DataConfig(shards=REMOTE))
    with pytest.raises(UserError, match=rf"{REMOTE}/metadata\.json does not exist .*; data\.shards must be what"):
        local_folder(_data(tmp_path))
    with pytest.raises(UserError, match=r"only s3://bucket/prefix is known"):
        local_folder(DataConfig(shards="gs://bucket/x", cache="c"))
    assert RemoteFolder(f"{REMOTE}/").name == REMOTE
