"""Shards written by several runs at once, each with a share of the parts, against one run's; with real kills."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.command_line import UserError
from common.shard_format import METADATA
from data_prep import merge_shards, write_parts, write_shards
from data_prep.shards.folder import locked
from data_prep.shards.parts import WORK_FOLDER, Part, RunShare
from tests.conftest import REPOSITORY, run_module
from tests.helpers.shard_writing import byte_arguments, copy_packages, files_of, kill_in_second_part, written_files


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python sources of 900 kB, some of them twice, with the copies far from their originals."""
    folder = copy_packages(tmp_path_factory.mktemp("shares") / "corpus", "email", "json", "asyncio")
    shutil.copytree(folder / "json", folder / "zz")
    return folder


@pytest.fixture(scope="module")
def reference(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one run without shares."""
    out = tmp_path_factory.mktemp("reference") / "out"
    return written_files(byte_arguments(corpus, out), out)


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "data_prep.write_shards", *arguments]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_concurrent_shares_write_what_one_run_writes(
    corpus: Path, tmp_path: Path, reference: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for more in (["--survey_only"], []):
        runs = [_start([*byte_arguments(corpus, out), "--part", f"{number}/3", *more]) for number in (1, 2, 3)]
        for run in runs:
            _, errors = run.communicate(timeout=300)
            assert run.returncode == 0, errors
        assert not (out / METADATA).exists()
    merge_shards.main([str(out)])
    assert files_of(out) == reference
    assert json.loads(reference[METADATA])["dropped"] == {"duplicate": 5, "empty": 1}  # the copies are in another share
    capsys.readouterr()
    merge_shards.main([str(out)])
    write_shards.main([*byte_arguments(corpus, out), "--part", "2/3"])
    assert capsys.readouterr().out.count("already finished") == 2
    assert files_of(out) == reference


def test_a_killed_share_continues(corpus: Path, tmp_path: Path, reference: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        write_shards.main([*byte_arguments(corpus, out), "--part", f"{number}/2", "--survey_only"])
    second = [*byte_arguments(corpus, out), "--part", "2/2"]
    kill_in_second_part(second, file=tmp_path / "held")
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("work/part-*[0-9].json")}
    with pytest.raises(
        UserError, match=r"parts (is|are) missing in .*; run the same command with --part 1/2 2/2, and then"
    ):
        merge_shards.main([str(out)])
    write_shards.main(second)
    now = {path.name: path.stat().st_mtime_ns for path in out.glob("work/part-*[0-9].json")}
    assert len(done) == 1
    assert done.items() <= now.items()
    with pytest.raises(UserError, match=r"run the same command with --part 1/2, and then this one"):
        merge_shards.main([str(out)])
    for number in (1, 2, 3):  # the rest may be divided into other shares
        write_shards.main([*byte_arguments(corpus, out), "--part", f"{number}/3"])
    merge_shards.main([str(out)])
    assert files_of(out) == reference


def test_runs_that_would_write_the_same_part_exclude_each_other(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    parts = [Part(index, ()) for index in range(100)]
    with locked(out, RunShare(2, 4).of(parts)):
        for share in ("2/4", "2/2", "1/1"):
            done = run_module("data_prep.write_shards", *byte_arguments(corpus, out), "--part", share)
            assert done.returncode == 2
            assert "MB" not in done.stdout  # nothing was tokenized
            assert "another write_shards is writing to" in done.stderr
        surveying = run_module("data_prep.write_shards", *byte_arguments(corpus, out), "--part", "1/4", "--survey_only")
        assert surveying.returncode == 0
        done = run_module("data_prep.merge_shards", out)
        assert done.returncode == 2
        assert "another write_shards is writing to" in done.stderr


def test_machines_that_see_other_input_are_refused(corpus: Path, tmp_path: Path) -> None:
    mine, out = tmp_path / "corpus", tmp_path / "out"
    shutil.copytree(corpus, mine)
    arguments = byte_arguments(mine, out, dedup="none")
    write_shards.main([*arguments, "--part", "1/2"])
    with pytest.raises(UserError, match=r"--seq_len 64 there, 32 now"):
        write_shards.main([*byte_arguments(mine, out, dedup="none", seq_len=32), "--part", "2/2"])
    os.rename(mine / "json" / "tool.py", mine / "json" / "tools.py")  # the numbers of files and bytes stay the same
    with pytest.raises(
        UserError, match=r'arguments: listing\.part-000\d\d "\w+: \d+ from /.*" there, ".*" now; choose'
    ):
        write_shards.main([*arguments, "--part", "2/2"])
    (mine / "json" / "tools.py").unlink()
    with pytest.raises(UserError, match=r"sources \[.*\] there, \[.*\] now"):
        write_shards.main([*arguments, "--part", "2/2"])


def test_duplicates_are_not_decided_before_all_shares_are_surveyed(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards.main([*byte_arguments(corpus, out), "--part", "2/4", "--survey_only"])
    with pytest.raises(UserError, match=r"not surveyed yet; first run it with --survey_only and --part 1/4 3/4$"):
        write_shards.main([*byte_arguments(corpus, out), "--part", "4/4"])


def never(*_: object, **__: object) -> None:
    raise RuntimeError("decided again")


@pytest.mark.parametrize("lost", [False, True])
def test_the_last_share_to_survey_decides_for_all(
    corpus: Path, tmp_path: Path, reference: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    out = tmp_path / "out"
    for number in (2, 1):
        assert not list(out.glob("work/*.decision.npy"))
        write_shards.main([*byte_arguments(corpus, out), "--part", f"{number}/2", "--survey_only"])
    decisions = {path: path.read_bytes() for path in out.glob("work/*.decision.npy")}
    assert len(decisions) == len(list(out.glob("work/*.survey.npz"))) > 3
    with monkeypatch.context() as patch:
        if lost:  # as after a kill while the decisions were written
            max(decisions).unlink()
        else:
            patch.setattr(write_parts, "decide", never)
        for number in (1, 2):
            write_shards.main([*byte_arguments(corpus, out), "--part", f"{number}/2"])
    assert {path: path.read_bytes() for path in out.glob("work/*.decision.npy")} == decisions
    merge_shards.main([str(out)])
    assert files_of(out) == reference


def test_a_share_that_found_wrong_ids_stops_the_others(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = byte_arguments(corpus, out, dedup="none")
    write_shards.main([*arguments, "--part", "1/2"])
    (out / WORK_FOLDER / "spoiled.txt").write_text("x.py: at token 5 ...")  # as test_write_shards_engines shows
    for command in (
        lambda: write_shards.main([*arguments, "--part", "2/2"]),
        lambda: merge_shards.main([str(out)]),
    ):
        with pytest.raises(UserError, match=r"out cannot be continued: x\.py: at token 5"):
            command()


def test_there_may_be_more_shares_than_parts(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = byte_arguments(corpus, out, part_bytes=10**7, dedup="none", val_fraction=0)
    write_shards.main([*arguments, "--part", "3/3"])
    assert "in 0 of 1 parts" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"1 of 1 part is missing in .* \(part-00000\); .* --part 1/3, and then"):
        merge_shards.main([str(out)])
    write_shards.main([*arguments, "--part", "1/3"])
    merge_shards.main([str(out)])
    assert (out / METADATA).exists()


@pytest.mark.parametrize("text", ["0/2", "3/2", "1", "1/0", "-1/2", "a/b", "1/2/3"])
def test_malformed_shares_are_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        write_shards.main(["--input", "x", "--tokenizer", "bytes", "--out", str(tmp_path), f"--part={text}"])
    assert error.value.code == 2
    assert "is not I/N" in capsys.readouterr().err


def test_a_survey_needs_deduplication_and_a_merge_needs_shards(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--survey_only needs --dedup"):
        write_shards.main([*byte_arguments(corpus, tmp_path / "out", dedup="none"), "--survey_only"])
    with pytest.raises(UserError, match=r"s3://bucket/code: shares are merged in a folder that all machines see"):
        merge_shards.main(["s3://bucket/code"])
    with pytest.raises(UserError, match="holds no shards, finished or unfinished"):
        merge_shards.main([str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
