"""Uploads of shards to an S3 server on this machine: what arrives, what is refused, and a kill midway."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from common.s3 import S3Path
from common.shard_format import METADATA
from data_prep import merge_shards, upload_shards, write_shards
from tests.conftest import run_module
from tests.helpers.answering import answering
from tests.helpers.held import Hold, wait_until
from tests.helpers.s3_server import NOWHERE, S3Server
from tests.helpers.shard_damage import flip_a_byte
from tests.helpers.shard_writing import STDLIB, held_run, kill

PREFIX = "some/where"


@pytest.fixture
def remote(s3: S3Server) -> str:
    return f"s3://{s3.bucket}/{PREFIX}"


def _files(root: Path) -> dict[str, bytes]:
    """Return the objects that an upload of a folder makes: all its files but the indexes of parts and the lock file."""
    paths = [path for path in sorted(root.rglob("*")) if path.is_file() and path.name != ".lock"]
    return {
        f"{PREFIX}/{path.relative_to(root)}": path.read_bytes()
        for path in paths
        if path.name != "index.json" or path.parent.parent == root
    }


def _arguments(out: str, *more: Any) -> list[str]:
    return ["--input", str(STDLIB / "json"), "--tokenizer", "bytes", "--seq_len", "64", "--val_fraction", "0.2",
            "--num_workers", "1", "--out", str(out), *map(str, more)]  # fmt: skip


def test_the_folder_arrives_and_the_same_command_then_does_nothing(
    s3: S3Server, remote: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards.main(_arguments(remote, "--work_dir", tmp_path / "work", "--compression", "zstd"))
    assert s3.objects() == _files(tmp_path / "work")
    capsys.readouterr()
    for folder in ("work", "other"):  # the second is empty: the copy in S3 is enough
        write_shards.main(_arguments(remote, "--work_dir", tmp_path / folder, "--compression", "zstd"))
        assert f"{remote} is already finished, with the same arguments; nothing to do" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "other").iterdir()] == [".lock"]
    with pytest.raises(UserError, match=rf"{remote} was finished with other arguments: --compression \"zstd\" there"):
        write_shards.main(_arguments(remote, "--work_dir", tmp_path / "other"))
    upload_shards.main([str(tmp_path / "work"), remote])
    assert f"{remote} has these shards already; nothing to do" in capsys.readouterr().out


def test_shares_are_merged_and_then_uploaded(s3: S3Server, remote: str, tmp_path: Path) -> None:
    cut = ["--part_bytes", 20_000]
    for share in ("2/2", "1/2"):
        write_shards.main(_arguments(str(tmp_path / "shared"), *cut, "--part", share))
    with pytest.raises(
        UserError, match=r"metadata\.json does not exist: the folder was not written by .*, or is not finished"
    ):
        upload_shards.main([str(tmp_path / "shared"), remote])
    merge_shards.main([str(tmp_path / "shared")])
    upload_shards.main([str(tmp_path / "shared"), remote])
    write_shards.main(_arguments(str(tmp_path / "alone"), *cut))
    assert s3.objects() == _files(tmp_path / "alone")
    assert len([name for name in s3.modified() if "/shard." in name]) > 3


def _many_parts(of: Path, folder: Path, *, parts: int) -> None:
    """Write finished shards that have the first part of other shards many times, each time as another part."""
    shutil.copytree(of, folder)
    part = folder / "train" / "part-00000"
    (shard,) = json.loads((part / "index.json").read_text())["shards"]
    shards = []
    for number in range(parts):
        name = f"part-{number:05}"
        if number:
            shutil.copytree(part, folder / "train" / name)
        raw_data = {**shard["raw_data"], "basename": f"{name}/{shard['raw_data']['basename']}"}
        shards.append({**shard, "raw_data": raw_data})
    (folder / "train" / "index.json").write_text(json.dumps({"version": 2, "shards": shards}))


def test_a_killed_upload_continues(s3: S3Server, remote: str, byte_shards: Path, tmp_path: Path) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key="some/whereabouts/x", Body=b"foreign")  # a name that begins the same
    folder = tmp_path / "shards"
    _many_parts(byte_shards, folder, parts=60)
    hold = Hold(command="data_prep.upload_shards", at="common.s3:S3Path.upload", after=7, file=tmp_path / "held")
    run = held_run([str(folder), remote], hold)
    wait_until(lambda: len(s3.modified()) == 1 + 1 + 7, run)  # the foreign object, uploading.json, and shards
    kill(run)
    before = s3.modified()
    assert f"{PREFIX}/{METADATA}" not in before
    assert f"{PREFIX}/uploading.json" in before
    with pytest.raises(UserError, match=f"{remote} holds other shards than "):
        upload_shards.main([str(byte_shards), remote])
    time.sleep(1)  # S3's times are whole seconds
    upload_shards.main([str(folder), remote])
    after = s3.modified()
    assert len([key for key in before if "/shard." in key and after[key] == before[key]]) == 7
    assert {key: data for key, data in s3.objects().items() if "whereabouts" not in key} == _files(folder)


def test_write_shards_continues_after_its_upload_was_killed(
    s3: S3Server, remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = _arguments(remote, "--work_dir", tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.shards.upload._verify", lambda *_: (_ for _ in ()).throw(RuntimeError("killed")))
        with pytest.raises(RuntimeError, match="killed"):
            write_shards.main(arguments)
    assert sorted(s3.modified()) == [f"{PREFIX}/uploading.json"]
    write_shards.main(arguments)
    assert s3.objects() == _files(tmp_path / "work")


def test_a_prefix_with_something_else_is_left_alone(s3: S3Server, remote: str, tmp_path: Path) -> None:
    s3.client().put_object(Bucket=s3.bucket, Key=f"{PREFIX}/thesis.pdf", Body=b"years of work")
    with pytest.raises(UserError, match=rf"{remote} is not empty, and does not hold shards \(it holds thesis\.pdf\)"):
        write_shards.main(_arguments(remote, "--work_dir", tmp_path / "work"))
    assert not list((tmp_path / "work").rglob("shard.*"))
    assert list(s3.modified()) == [f"{PREFIX}/thesis.pdf"]


def test_a_damaged_shard_is_not_uploaded(s3: S3Server, remote: str, byte_shards: Path, tmp_path: Path) -> None:
    shutil.copytree(byte_shards, tmp_path / "shards")
    flip_a_byte(tmp_path / "shards")
    with pytest.raises(UserError, match=r"shard\.00000\.mds has the xxh64 hash .*; nothing more is sent"):
        upload_shards.main([str(tmp_path / "shards"), remote])
    assert f"{PREFIX}/{METADATA}" not in s3.modified()


@pytest.mark.parametrize("body", [b"<html><body>Sign in</body></html>", b""])
def test_an_endpoint_that_is_not_s3_is_refused_before_anything_is_sent(body: bytes, byte_shards: Path) -> None:
    with answering(body) as (address, requests):
        done = run_module(
            "data_prep.upload_shards", byte_shards, "s3://bucket/x", AWS_ENDPOINT_URL=address,
            AWS_ACCESS_KEY_ID="nobody", AWS_SECRET_ACCESS_KEY="nothing", AWS_DEFAULT_REGION="us-east-1",
            AWS_EC2_METADATA_DISABLED="true",
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "data_prep.upload_shards: error: s3://bucket/x cannot be listed: the endpoint's answer is no list; it may "
        "not be S3: check AWS_ENDPOINT_URL\n"
    )
    assert {method for method, _ in requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uploading.json", r"uploading\.json was sent, but the endpoint did not store it; it may not be S3"),
        ("train/part-00000/shard.00000.mds", r"shard\.00000\.mds was sent, but it is not there; it may not be S3"),
        ("report.json", r"report\.json was sent, but it is not there; it may not be S3"),
        (METADATA, r"metadata\.json was sent, but the endpoint did not store it; it may not be S3"),
    ],
)
def test_what_the_endpoint_does_not_store_is_named(
    name: str, message: str, s3: S3Server, remote: str, byte_shards: Path, tmp_path: Path
) -> None:
    s3.lose(f"{PREFIX}/{name}")
    with pytest.raises(UserError, match=message):
        upload_shards.main([str(byte_shards), remote])
    assert f"{PREFIX}/{METADATA}" not in s3.modified()


def test_a_continued_upload_compares_what_is_there(s3: S3Server, remote: str, byte_shards: Path) -> None:
    s3.lose(f"{PREFIX}/{METADATA}")
    with pytest.raises(UserError, match="was sent, but"):
        upload_shards.main([str(byte_shards), remote])
    client, key = s3.client(), f"{PREFIX}/train/part-00000/shard.00000.mds"
    client.put_object(Bucket=s3.bucket, Key=key, Body=bytes(len(s3.objects()[key])))
    upload_shards.main([str(byte_shards), remote])
    assert s3.objects() == _files(byte_shards)


def test_large_files_are_compared_by_the_hashes_of_their_pieces(s3: S3Server, tmp_path: Path) -> None:
    path, stored = tmp_path / "file", S3Path(f"s3://{s3.bucket}/large/file")
    for n_bytes in ((8 << 20) - 1, 8 << 20, (16 << 20) + 1, 0):
        path.write_bytes(random.Random(n_bytes).randbytes(n_bytes))
        s3.take_sent()
        stored.upload(path)
        assert stored.difference(path) is None
        assert s3.take_sent() == []  # by its ETag alone
    s3.client().put_object(Bucket=s3.bucket, Key="large/file", Body=b"other")
    assert stored.difference(path) == "it has 5 bytes, not 0"
    path.write_bytes(b"those")
    assert stored.difference(path) == "it holds other bytes"


@pytest.mark.parametrize(
    ("out", "variables", "message"),
    [
        ("s3://nowhere-at-all/x", {}, "there is no bucket s3://nowhere-at-all; create it first, or name another"),
        ("", {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "s3://BUCKET: no credentials; set AWS_PROFILE"),
        ("", {"AWS_ENDPOINT_URL": NOWHERE}, "s3://BUCKET cannot be reached: Could not connect to the endpoint"),
        ("", {"AWS_ENDPOINT_URL": "nonsense"}, "s3://BUCKET cannot be reached: Invalid endpoint: nonsense"),
        ("s3://bucket", {}, "'s3://bucket' must name a bucket and a folder in it"),
        ("gs://bucket/x", {}, "gs://bucket/x: only s3://bucket/prefix is supported"),
    ],
)
def test_a_mistake_gives_one_line_before_any_work(
    out: str, variables: dict[str, str], message: str, s3: S3Server, remote: str, tmp_path: Path
) -> None:
    arguments = _arguments(out or remote, "--work_dir", tmp_path / "work")
    done = run_module("data_prep.write_shards", *arguments, timeout_s=300, **variables)
    assert done.returncode == 2
    assert done.stderr.startswith(f"data_prep.write_shards: error: {message.replace('BUCKET', s3.bucket)}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "work").exists()


def test_conflicting_arguments_are_refused(s3: S3Server, remote: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs --work_dir"):
        write_shards.main(_arguments(remote))
    with pytest.raises(
        UserError, match=f"run merge_shards when all shares are written, and then upload_shards DIR {remote}"
    ):
        write_shards.main(_arguments(remote, "--work_dir", tmp_path, "--part", "1/2"))
    with pytest.raises(UserError, match="--work_dir needs --out s3://"):
        write_shards.main(_arguments(str(tmp_path / "out"), "--work_dir", tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=f"--work_dir {tmp_path}/file is a file"):
        write_shards.main(_arguments(remote, "--work_dir", tmp_path / "file"))
    with pytest.raises(UserError, match=r"'shards' is not s3://BUCKET/PREFIX"):
        upload_shards.main([str(tmp_path), "shards"])
