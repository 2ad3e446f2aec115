"""merge_shards on folders that are damaged or come from others: one message, and nothing is written or followed."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from common.shard_format import METADATA
from data_prep import merge_shards, write_shards
from tests.conftest import run_module
from tests.helpers.shard_writing import copy_packages, files_of, model_arguments

Change = Callable[[Any], object]


@pytest.fixture(scope="module")
def arguments(sentencepiece_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line without --out, for several parts."""
    corpus = copy_packages(tmp_path_factory.mktemp("corpus"), "json")
    return model_arguments(corpus, sentencepiece_model, Path("OUT"), part_bytes=20_000)


@pytest.fixture(scope="module")
def unmerged(arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which all parts are written, but not merged."""
    out = tmp_path_factory.mktemp("unmerged") / "out"
    for number in (1, 2):
        write_shards.main([*arguments, "--out", str(out), "--part", f"{number}/2"])
    return out


@pytest.fixture
def out(unmerged: Path, tmp_path: Path) -> Path:
    """A copy of that folder, which the test may damage."""
    return Path(shutil.copytree(unmerged, tmp_path / "out"))


def _put(*keys: Any, value: Any) -> Change:
    """Return a change of a JSON value: `value` at the place that `keys` lead to."""

    def change(whole: Any) -> None:
        for key in keys[:-1]:
            whole = whole[key]
        whole[keys[-1]] = value

    return change


def _refused(out: Path, message: str) -> None:
    """Check that the folder is refused with one message, and left as it is."""
    before = files_of(out)
    with pytest.raises(UserError, match=message):
        merge_shards.main([str(out)])
    assert {name: data for name, data in files_of(out).items() if name != ".lock"} == {
        name: data for name, data in before.items() if name != ".lock"
    }
    assert not (out / METADATA).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("listing", value=["part-00000"]), r"listing: Input should be a valid dictionary"),
        (
            _put("listing", value={"../part": "x"}),
            r"listing: the names are not those of consecutive parts",
        ),
        (_put("listing", value={}), r"listing: Dictionary should have at least 1 item"),
        (_put("seq_len", value=32), r"seq_len and lookahead are not those of the arguments"),
        (_put("seq_len", value=-1), r"seq_len: Input should be greater than or equal to 1"),
        (_put("arguments", "val_fraction", value="0.2"), r"arguments\.val_fraction: Input should be a valid number"),
        (_put("arguments", "input", value=None), r"neither input nor mix names a source"),
        (_put("skipped", value=[["x"]]), r"skipped\.0\.1: Field required"),
        (_put("tokenizer", "eos_id", value=None), r"tokenizer\.eos_id: Input should be a valid integer"),
    ],
)
def test_a_plan_of_another_shape_is_refused(change: Change, message: str, out: Path) -> None:
    plan = json.loads((out / "work" / "plan.json").read_text())
    change(plan)
    (out / "work" / "plan.json").write_text(json.dumps(plan))
    _refused(out, rf"work/plan\.json is damaged: .*{message}.*; delete the folder")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _put("splits", "train", "windows", value=-1),
            r"splits\.train\.windows: Input should be greater than or equal",
        ),
        (_put("splits", "train", "windows", value=1.5), r"splits\.train\.windows: Input should be a valid integer"),
        (_put("splits", "../../x", value={}), r"splits\.\.\./\.\./x\.\[key\]: Input should be 'train' or 'val'"),
        (_put("splits", "train", "more", value=1), r"splits\.train\.more: Unexpected keyword argument"),
        (_put("tally", "python", "kept", value=[1]), r"tally\.python\.kept: List should have at least 3 items"),
        (_put("examples", "empty", value=[{"rule": "x"}]), r"it has other keys than source, and text or detail"),
        (_put("sources", "x", value={"sources": 1}), r"it has other keys than documents, bytes, tokens"),
    ],
)
def test_a_mark_of_another_shape_counts_as_missing_and_is_named(
    change: Change, message: str, out: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = out / "work" / "part-00001.json"
    mark = json.loads(path.read_text())
    change(mark)
    path.write_text(json.dumps(mark))
    damage = rf"part-00001\.json is damaged: .*{message}.*; the part has to be written again"
    _refused(out, rf"1 of \d parts is missing in .* \(part-00001\): .*{damage}; run the same command with --part 2/2")
    write_shards.main([*arguments, "--out", str(out), "--part", "2/2"])
    assert f"warning: {path} is damaged: " in capsys.readouterr().out
    merge_shards.main([str(out)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("splits", "val", value=None), r"splits\.val: Input should be a dictionary"),
        (lambda mark: mark["splits"].pop("val"), r"is damaged: it has other splits than train val"),
        (_put("splits", "train", "windows", value=1), r"train has [\d,]+ tokens, which do not give 1 window;"),
        (_put("splits", "train", "documents", value=10**9), r"train has 1,000,000,000 documents of \d+ tokens"),
    ],
)
def test_counts_that_cannot_be_are_refused(change: Change, message: str, out: Path) -> None:
    path = out / "work" / "part-00001.json"
    mark = json.loads(path.read_text())
    change(mark)
    path.write_text(json.dumps(mark))
    _refused(out, message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_put("shards", 0, "raw_data", "basename", value="../../../secret"), "not a path inside that folder"),
        (_put("shards", 0, "raw_data", "basename", value="other.mds"), "shard 0 names the files other.mds"),
        (_put("shards", 0, "raw_meta", value={"basename": "x"}), r"is not an index .*raw_meta"),
        (_put("shards", 0, "raw_data", "bytes", value=1), r"windows do not fit into the 1 bytes"),
        (_put("shards", 0, "samples", value=1), r"has 1 window, but the mark of its part says \d+"),
        (_put("shards", 0, "samples", value=-1), "samples is -1"),
        (_put("shards", 0, "column_encodings", value=["pkl"]), r"has the encoding 'pkl'"),
        (_put("shards", 0, "raw_data", "bytes", value=10**8), r"shard\.00000\.mds is not a file of 100000000 bytes"),
        (_put("shards", 0, "compression", value="zstd"), r"shard 0 has compression 'zstd'"),
        (_put("shards", value=[]), r"has 0 windows, but the mark of its part says \d+"),
    ],
)
def test_an_index_that_write_shards_did_not_write_is_refused(change: Change, message: str, out: Path) -> None:
    path = out / "train" / "part-00001" / "index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    _refused(out, rf"{message}.*; delete .*work/part-00001\.json, and run the same write_shards command again")


@pytest.mark.parametrize(
    "name",
    [
        "work", "work/plan.json", "work/part-00001.json", "work/tokenizer.model", "train", "train/part-00001",
        "train/part-00001/index.json",
    ],
)  # fmt: skip
def test_links_are_not_followed(name: str, out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (out / name).rename(elsewhere)
    (out / name).symlink_to(elsewhere)
    _refused(out, rf"{name} is a link, which is not followed; put a copy of the file in its place")


def test_a_linked_shard_or_another_tokenizer_is_refused(out: Path, tmp_path: Path) -> None:
    shard = out / "train" / "part-00001" / "shard.00000.mds"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    _refused(out, r"shard\.00000\.mds is not a file of \d+ bytes")
    shard.unlink()
    (tmp_path / "elsewhere").rename(shard)
    (out / "work" / "tokenizer.model").write_bytes(b"another")
    _refused(out, r"work/tokenizer\.model is not the tokenizer of these shards; copy the model of --tokenizer there")


@pytest.mark.parametrize(
    "name", ["work/plan.json", "work/part-00001.json", "work/spoiled.txt", "train/part-00001/index.json"]
)
def test_a_pipe_in_place_of_a_file_does_not_hang(name: str, out: Path) -> None:
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name)
    done = run_module("data_prep.merge_shards", out, timeout_s=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["report.json", "metadata.json", "train/index.json", ".lock"])
def test_a_folder_in_place_of_a_file_is_named(name: str, out: Path) -> None:
    (out / name).unlink(missing_ok=True)
    (out / name / "mine").mkdir(parents=True)
    with pytest.raises(UserError, match=r"Is a directory|it is a folder"):
        merge_shards.main([str(out)])
    assert (out / name / "mine").is_dir()
    assert list(out.glob("work/part-*.json"))
