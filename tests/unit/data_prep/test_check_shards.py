"""check_shards on intact shards, and on every kind of damage."""

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
import zstandard

from common.command_line import UserError
from data_prep import check_shards, train_tokenizer, write_shards
from tests.conftest import run_module
from tests.helpers.shard_damage import DAMAGE, SHARD, change_json, flip_a_byte
from tests.helpers.shard_writing import STDLIB

JSON_PACKAGE = STDLIB / "json"


@pytest.fixture(scope="module")
def zstd_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    model = folder / "tokenizer.model"
    train_tokenizer.main(["--input", str(JSON_PACKAGE), "--output", str(model), "--vocab_size", "500"])
    write_shards.main(
        ["--input", str(JSON_PACKAGE), "--tokenizer", str(model), "--out", str(folder / "out"), "--seq_len", "32",
         "--val_fraction", "0.2", "--num_workers", "1", "--compression", "zstd"]
    )  # fmt: skip
    return folder / "out"


@pytest.fixture
def shards(byte_shards: Path, tmp_path: Path) -> Path:
    """A copy of intact byte shards, which the test may damage."""
    return Path(shutil.copytree(byte_shards, tmp_path / "shards"))


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, shards: Path) -> None:
    damage, message = DAMAGE[name]
    damage(shards)
    with pytest.raises(UserError, match=message):
        check_shards.main([str(shards)])


def test_intact_shards_pass(byte_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_shards.main([str(byte_shards)])
    header, train, val = capsys.readouterr().out.splitlines()
    metadata = json.loads((byte_shards / "metadata.json").read_text())
    assert header.split()[:4] == ["split", "documents", "tokens", "windows"]
    for line, split in [(train, "train"), (val, "val")]:
        counts = metadata["splits"][split]
        assert line.replace(",", "").split()[:4] == [
            split,
            *(str(counts[k]) for k in ("documents", "tokens", "windows")),
        ]
        assert line.endswith("ok")


def test_compressed_shards_pass_and_their_damage_is_found(zstd_shards: Path, tmp_path: Path) -> None:
    check_shards.main([str(zstd_shards)])
    root = Path(shutil.copytree(zstd_shards, tmp_path / "shards"))
    [path] = (root / "train" / "part-00000").glob("*.zstd")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(UserError, match=r"shard\.00000\.mds\.zstd has the xxh64 hash"):
        check_shards.main([str(root)])


@pytest.mark.parametrize("key", ["raw_data", "zip_data"])
@pytest.mark.parametrize("name", ["../val/part-00000/shard.00000.mds", "/etc/hostname", 5])
def test_files_outside_of_a_split_are_refused(name: Any, key: str, zstd_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(zstd_shards, tmp_path / "shards"))
    change_json(root / "train/index.json", "shards", 0, key, "basename", value=name)
    with pytest.raises(UserError) as error:
        check_shards.main([str(root)])
    assert f"{root / 'train/index.json'} names the file {name!r}, which is not a path inside" in str(error.value)


def test_splits_outside_of_the_folder_are_refused(shards: Path) -> None:
    metadata = json.loads((shards / "metadata.json").read_text())
    metadata["splits"]["../other"] = metadata["splits"]["val"]
    (shards / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"metadata\.json names the file '\.\./other', which is not a path inside"):
        check_shards.main([str(shards)])


def _replace_compressed(root: Path, contents: bytes) -> None:
    """Replace the only compressed shard of train by other bytes, with their size and hash in the index."""
    [path] = (root / "train" / "part-00000").glob("*.zstd")
    path.write_bytes(contents)
    info = {"bytes": len(contents), "hashes": {"xxh64": xxhash.xxh64_hexdigest(contents)}}
    for key, value in info.items():
        change_json(root / "train/index.json", "shards", 0, "zip_data", key, value=value)


def test_a_compressed_shard_takes_no_more_memory_than_its_index_says(zstd_shards: Path, tmp_path: Path) -> None:
    """Its header claims 2 GiB of zeros; decompressing at once would allocate them before any check."""
    root = Path(shutil.copytree(zstd_shards, tmp_path / "shards"))
    size = 1 << 31
    compressor = zstandard.ZstdCompressor().compressobj(size=size)
    zeros = bytes(1 << 24)
    bomb = b"".join(compressor.compress(zeros) for _ in range(size // len(zeros))) + compressor.flush()
    _replace_compressed(root, bomb)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"shard\.00000\.mds\.zstd has \d+ bytes, its index says \d+"):
        check_shards.main([str(root)])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < size / 20


def test_a_file_that_cannot_be_decompressed_is_named(zstd_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(zstd_shards, tmp_path / "shards"))
    _replace_compressed(root, b"plain")
    with pytest.raises(UserError, match=r"shard\.00000\.mds\.zstd cannot be decompressed"):
        check_shards.main([str(root)])


def test_another_tokenizer_is_found(zstd_shards: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(zstd_shards, tmp_path / "shards"))
    with (root / "tokenizer.model").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match=r"tokenizer\.model is not the tokenizer of these shards"):
        check_shards.main([str(root)])
    (root / "tokenizer.model").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.model does not exist"):
        check_shards.main([str(root)])
    os.mkfifo(root / "tokenizer.model")
    with pytest.raises(UserError, match=r"tokenizer\.model cannot be read: it is a FIFO"):
        check_shards.main([str(root)])


def test_the_overlap_is_checked_across_the_shards_of_a_part(tmp_path: Path) -> None:
    """Two shards of one part are each correct, but the second does not follow the first."""
    from common.mds import streaming

    def write(folder: Path, starts: list[int]) -> list[int]:
        """Write windows of 4 + 2 consecutive ids into small shards; return the number of windows of each shard."""
        out = folder / "train" / "part-00000"
        writer = streaming.MDSWriter(
            columns={"tokens": "ndarray:uint16:6"}, out=str(out), hashes=["xxh64"], size_limit=400
        )
        for start in starts:
            writer.write({"tokens": np.arange(start, start + 6, dtype=np.uint16)})
        writer.finish()
        index = json.loads((out / "index.json").read_text())
        for shard in index["shards"]:
            shard["raw_data"]["basename"] = f"part-00000/{shard['raw_data']['basename']}"
        (folder / "train" / "index.json").write_text(json.dumps(index))
        return [shard["samples"] for shard in index["shards"]]

    metadata = {"seq_len": 4, "lookahead": 2, "vocab_size": 300}
    right = list(range(0, 4 * 20, 4))
    first, *others = write(tmp_path / "right", right)
    assert others
    assert check_shards.check_split(tmp_path / "right" / "train", metadata, expected_windows=20).problems == []
    write(tmp_path / "wrong", right[:first] + [start + 1 for start in right[first:]])
    problems = check_shards.check_split(tmp_path / "wrong" / "train", metadata, expected_windows=20).problems
    [problem] = problems
    assert problem.endswith("shard.00001.mds: windows do not overlap by 2 tokens")


def test_every_problem_is_listed(shards: Path) -> None:
    flip_a_byte(shards)
    (shards / "val" / "index.json").unlink()
    with pytest.raises(UserError) as error:
        check_shards.main([str(shards)])
    assert str(error.value).count("\n  - ") == 2


def test_a_sample_shows_text_and_where_documents_end(zstd_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    check_shards.main([str(zstd_shards), "--sample", "100000"])  # more than there are: all are shown
    shown = capsys.readouterr().out
    metadata = json.loads((zstd_shards / "metadata.json").read_text())
    assert shown.count("--- train, window ") == metadata["splits"]["train"]["windows"]
    assert shown.count("--- val, window ") == metadata["splits"]["val"]["windows"]
    assert "⟦EOS⟧" in shown
    with pytest.raises(UserError, match=r"--sample must be a whole number from 0 to .*, not -1"):
        check_shards.main([str(zstd_shards), "--sample", "-1"])


def test_damage_is_exit_code_2_without_a_traceback(shards: Path) -> None:
    flip_a_byte(shards)
    done = run_module("data_prep.check_shards", shards)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    start = f"data_prep.check_shards: error: {shards} is damaged: {shards / SHARD} has the xxh64 hash "
    assert done.stderr.splitlines()[-1].startswith(start)


def test_document_ids_that_do_not_count_documents_are_found(tmp_path: Path) -> None:
    from data_prep.shards.mds_writer import MDSWriter

    tokens = np.array([[1, 2, 257, 3, 257, 4], [257, 4, 5, 5, 257, 6]], dtype=np.uint16)
    right = np.array([[0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 1, 2]], dtype=np.uint16)
    metadata = {
        "seq_len": 4, "lookahead": 2, "vocab_size": 258, "document_ids": True, "tokenizer": {"eos_id": 257},
    }  # fmt: skip

    def problems_of(name: str, document_ids: Any, *, ends: str) -> list[str]:
        writer = MDSWriter(tmp_path / name, window_length=6, compression=None, columns=["document_ids", "tokens"])
        writer.add(np.hstack([document_ids, tokens]))
        writer.finish()
        return check_shards.check_split(
            tmp_path / name, metadata | {"document_ends": ends}, expected_windows=2
        ).problems

    assert problems_of("right", right, ends="eos") == []
    late = right.copy()
    late[1] = [0, 0, 1, 1, 1, 2]
    assert problems_of("late_bos", late, ends="bos") == []  # without an EOS after each document, a step may be anywhere
    for name, wrong in (("late", late), ("from_1", right + np.uint16(1))):
        [problem] = problems_of(name, wrong, ends="eos")
        assert problem.endswith("the document ids do not count the documents of each window from 0")
    skipped = right.copy()
    skipped[0, 5] = 3
    assert len(problems_of("skipped", skipped, ends="none")) == 1
