"""check_shards, stats and report on shards in S3, against their output for the same shards on a disk."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from common import s3 as s3_folders
from common.command_line import UserError
from common.s3 import MissingObjectError, RemoteError, S3Path, folder_at
from common.shard_format import read_index
from data_prep import check_shards, report, stats, upload_shards, write_shards
from tests.helpers.s3_server import NOWHERE, S3Server


@pytest.fixture
def shards(tmp_path: Path, sentencepiece_model: Path) -> Path:
    """Compressed shards of several parts, with a SentencePiece model."""
    corpus = tmp_path / "corpus.jsonl"
    documents = [{"text": f"def f{n}(x):\n    return x + {n}\n" * 20} for n in range(200)]
    corpus.write_text("".join(f"{json.dumps(document)}\n" for document in documents))
    write_shards.main(
        ["--input", str(corpus), "--tokenizer", str(sentencepiece_model), "--out", str(tmp_path / "shards"),
         "--seq_len", "64", "--val_fraction", "0.2", "--num_workers", "1", "--compression", "zstd",
         "--part_bytes", "40000"]
    )  # fmt: skip
    return tmp_path / "shards"


@pytest.fixture
def name(s3: S3Server, shards: Path) -> str:
    upload_shards.main([str(shards), f"s3://{s3.bucket}/a/b"])
    return f"s3://{s3.bucket}/a/b"


def test_all_commands_print_the_same_for_both(
    shards: Path, name: str, s3: S3Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed: list[list[str]] = []
    for folder in (str(shards), name):
        capsys.readouterr()
        check_shards.main([folder, "--sample", "2"])
        stats.main([folder, "--output", str(tmp_path / "stats.png")])
        report.main([folder])
        printed.append(capsys.readouterr().out.splitlines())
    assert printed[0] == printed[1]
    assert any(line.startswith("val") and line.endswith("  ok") for line in printed[1])
    assert {"a/b/metadata.json", "a/b/tokenizer.model", "a/b/report.json"} <= set(s3.take_sent())
    with pytest.raises(UserError, match=f"stats does not write to {name}: give a file for the histogram with --output"):
        stats.main([name])


def test_damaged_objects_are_found_and_named(name: str, s3: S3Server) -> None:
    keys = sorted(key for key in s3.modified() if "/train/part-" in key)
    s3.client().delete_object(Bucket=s3.bucket, Key=keys[0])
    s3.corrupt(keys[1], times=1)
    with pytest.raises(UserError, match=f"{name} is damaged") as caught:
        check_shards.main([name])
    assert f"s3://{s3.bucket}/{keys[0]} cannot be read: no such object" in str(caught.value)
    assert f"s3://{s3.bucket}/{keys[1]} has the xxh64 hash " in str(caught.value)
    s3.client().delete_object(Bucket=s3.bucket, Key="a/b/metadata.json")
    with pytest.raises(
        UserError, match=rf"{name}/metadata\.json does not exist: the folder was not written by data_prep"
    ):
        check_shards.main([name])


def test_unreachable_storage_is_not_reported_as_damage(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(S3Path, "check_bucket", lambda _: monkeypatch.setenv("AWS_ENDPOINT_URL", NOWHERE))
    monkeypatch.setattr(s3_folders, "_PERSISTENT", replace(s3_folders._PERSISTENT, attempts=1))
    with pytest.raises(RemoteError, match=r"metadata\.json cannot be reached"):
        check_shards.main([name])
    with pytest.raises(RemoteError, match=r"index\.json cannot be reached"):
        read_index(S3Path(name) / "train")


def test_a_silent_endpoint_is_given_up(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(s3_folders, "_INTERACTIVE", replace(s3_folders._INTERACTIVE, read_timeout_s=0.2))
        with pytest.raises(RemoteError, match=rf"s3://{s3.bucket} cannot be reached: Read timeout on endpoint URL"):
            folder_at(f"s3://{s3.bucket}/x")


def test_an_s3_path_behaves_like_a_path_on_a_disk(s3: S3Server, tmp_path: Path) -> None:
    folder = S3Path(f"s3://{s3.bucket}/a/")
    assert (str(folder), str(folder / "b/c"), (folder / "b" / "c").name) == (
        f"s3://{s3.bucket}/a", f"s3://{s3.bucket}/a/b/c", "c",
    )  # fmt: skip
    (folder / "b" / "c").write_bytes(b"some bytes")
    assert folder.sizes() == {"b/c": 10}
    assert (folder / "b" / "c").read_bytes() == b"some bytes"
    (folder / "b" / "c").unlink()
    with pytest.raises(MissingObjectError) as caught:
        (folder / "b" / "c").download(tmp_path / "c")
    assert caught.value.filename == f"s3://{s3.bucket}/a/b/c"
    assert not list(tmp_path.iterdir())
