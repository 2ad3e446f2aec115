"""The record of samples, and what the command makes of it: written by hand, and by the writer that runs use."""

import json
import resource
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from common.command_line import UserError
from pipeline import audit
from pipeline.audit import SampleRecord, consumed, cut_after
from pipeline.config.schema import Config, LogConfig, RunConfig
from pipeline.runtime.world import World
from tests.conftest import REPOSITORY, run_module
from tests.unit.pipeline.data.test_batches import config_for

WORLD = World(rank=0, local_rank=0, world_size=1, local_world_size=1)
Steps = dict[int, list[list[Any]]]  # by step, [epoch, ids]


def run_at(run_dir: Path, *ranks: Steps, per_step: int = 4, num_canonical_nodes: int = 1) -> Path:
    """Write a run's config.yaml and each rank's record."""
    (run_dir / "samples").mkdir(parents=True)
    config = config_for(Path("shards"), windows_per_step=per_step, num_canonical_nodes=num_canonical_nodes)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.as_dict()))
    for rank, steps in enumerate(ranks):
        lines = [json.dumps({"step": step, "samples": samples}) + "\n" for step, samples in steps.items()]
        (run_dir / "samples" / f"rank_{rank:05d}.jsonl").write_text("".join(lines))
    return run_dir


GOOD: Steps = {1: [[0, [3, 1, 0, 2]]], 2: [[0, [7, 4, 6, 5]]], 3: [[1, [2, 6, 7, 1]]]}


def outcome(capsys: pytest.CaptureFixture[str], *runs: Path) -> tuple[str, int]:
    with pytest.raises(SystemExit) as ended:
        audit.main([str(run) for run in runs])
    assert isinstance(ended.value.code, int)
    return capsys.readouterr().out, ended.value.code


def test_consumed_adds_up_the_ranks(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", {1: [[0, [3, 3]]], 3: [[0, [5]], [1, [5]]]}, {}, {1: [[0, [1, [2, 9]]]]})
    assert consumed(run) == {1: Counter({(0, 3): 2, (0, 1): 1, (0, 2): 1}), 3: Counter({(0, 5): 1, (1, 5): 1})}


def test_a_good_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, code = outcome(capsys, run_at(tmp_path / "run", GOOD))
    assert code == 0
    assert out.splitlines() == [
        f"{tmp_path / 'run'}: 3 steps up to step 3, 12 samples, 2 epochs",
        "  epoch 0: 8 samples, 0 of them again",
        "  epoch 1: 4 samples, 0 of them again",
        "  no step is missing; every sample came once an epoch, but for up to 0 of padding",
    ]


def test_missing_steps_and_samples_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {2: GOOD[2], 4: [[1, [1, 2]]], 6: GOOD[3]}
    out, code = outcome(capsys, run_at(tmp_path / "run", steps))
    assert code == 1
    assert "wrong: 3 of the steps up to 6 are missing" in out
    assert "wrong: step 4 has 2 samples instead of 4" in out


@pytest.mark.parametrize(("num_canonical_nodes", "expected"), [(2, 1), (3, 0)])
def test_samples_that_come_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_canonical_nodes: int, expected: int
) -> None:
    steps: Steps = {1: [[0, [3, 1, 0, 2]]], 2: [[0, [3, 4, 1, 5]]], 3: [[1, [3, 4, 1, 5]]]}
    run = run_at(tmp_path / "run", steps, num_canonical_nodes=num_canonical_nodes)
    out, code = outcome(capsys, run)
    assert "epoch 0: 8 samples, 2 of them again" in out
    assert code == expected
    assert ("wrong: epoch 0 has 2 samples again, of which 1 can be padding" in out) == bool(expected)


def test_replaced_windows_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, code = outcome(capsys, run_at(tmp_path / "run", {1: [[0, [3, [1, 8], 0, [2, 9]]]]}))
    assert code == 0
    assert "2 windows of damaged shards were replaced by others" in out


def test_a_last_step_that_a_kill_cut_off_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_at(tmp_path / "run", {1: [[0, [3, 1]]], 2: [[0, [4, 5]]]}, {1: [[0, [0, 2]]]})
    out, code = outcome(capsys, run)
    assert code == 0
    assert "step 2 is left out: not all ranks have written it" in out
    whole = run_at(tmp_path / "whole", {1: [[0, [3, 1, 2, 0]]], 2: [[0, [4, 5, 6, 7]]]})
    out, code = outcome(capsys, run, whole)
    assert (code, out) == (0, "the same samples in each of 1 common steps\n")


def test_equal_runs_whatever_the_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [{step: [[epoch, ids[half::2]]] for step, ((epoch, ids),) in GOOD.items()} for half in (0, 1)]
    out, code = outcome(capsys, run_at(tmp_path / "a", GOOD), run_at(tmp_path / "b", *halves))
    assert (code, out) == (0, "the same samples in each of 3 common steps\n")


@pytest.mark.parametrize(
    ("other", "only_a", "only_b"),
    [
        ([[0, [7, 4, 6, 8]]], "5 of epoch 0", "8 of epoch 0"),
        ([[0, [7, 4, 6, 6]]], "5 of epoch 0", "6 of epoch 0"),
        ([[0, [7, 4, 6]], [1, [5]]], "5 of epoch 0", "5 of epoch 1"),
        ([[0, [7, 4, 6, [5, 9]]]], "nothing", "9 in place of 5 of epoch 0"),
    ],
)
def test_the_first_difference_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], other: list[list[Any]], only_a: str, only_b: str
) -> None:
    a, b = run_at(tmp_path / "a", GOOD), run_at(tmp_path / "b", {**GOOD, 2: other, 3: [[1, [0, 0, 0, 0]]]})
    out, code = outcome(capsys, a, b)
    assert code == 1
    assert out.splitlines() == [
        "different from step 2 on; 1 common steps before it are the same",
        f"  only {a} had {only_a}",
        f"  only {b} had {only_b}",
    ]


def test_steps_that_one_run_lacks_are_no_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = run_at(tmp_path / "a", GOOD), run_at(tmp_path / "b", {2: GOOD[2], 9: GOOD[1]})
    assert outcome(capsys, a, b) == ("the same samples in each of 1 common steps\n", 0)
    c = run_at(tmp_path / "c", {9: GOOD[1]})
    with pytest.raises(UserError, match="have no recorded step in common"):
        audit.main([str(a), str(c)])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    unrecorded = run_at(tmp_path / "unrecorded")
    empty = run_at(tmp_path / "empty", {})
    for arguments, message in [
        ([unrecorded], "has no record of its samples (samples/rank_*.jsonl); a run keeps one with log.samples=true"),
        ([empty], "has no record of its samples"),
        ([tmp_path / "nothing"], "is not a run: its config.yaml cannot be read"),
    ]:
        done = run_module("pipeline.audit", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.startswith("pipeline.audit: error: ")
        assert done.stderr.count("\n") == 1
    three = run_module("pipeline.audit", unrecorded, unrecorded, unrecorded)
    assert three.returncode == 2
    assert "one run or two, not 3" in three.stderr


def test_a_config_that_is_none(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", GOOD)
    for content in ("- 1", "train: {}", "a: [", "train: {batch_tokens: x}\ndata: {seq_len: 1}"):
        (run / "config.yaml").write_text(content)
        with pytest.raises(UserError, match="is not a run"):
            audit.main([str(run)])


def config_at(run_dir: Path, *, samples: bool = True) -> Config:
    config = config_for(Path("shards"))
    return replace(config, run=RunConfig(dir=str(run_dir.parent), name=run_dir.name), log=LogConfig(samples=samples))


def write(run_dir: Path, *, steps: range, resumed_step: int = 0) -> None:
    with SampleRecord(config_at(run_dir), world=WORLD, resumed_step=resumed_step) as record:
        for step in steps:
            record.write(step, [(0, [step, (100 + step, 7)])])


def recorded(run_dir: Path) -> dict[int, list[int]]:
    return {step: sorted(sample for _, sample in had) for step, had in consumed(run_dir).items()}


def test_a_record_goes_on_from_the_resumed_step(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, steps=range(1, 8))
    write(run, steps=range(5, 9), resumed_step=4)
    assert recorded(run) == {step: [step, 100 + step] for step in range(1, 9)}
    text = (run / "samples" / "rank_00000.jsonl").read_text()
    assert text.splitlines()[0] == '{"step":1,"samples":[[0,[1,[101,7]]]]}'
    write(run, steps=range(1, 3))
    assert recorded(run) == {1: [1, 101], 2: [2, 102]}, "a run that begins anew has its record anew"


def test_ranks_that_are_gone_are_cut_too(tmp_path: Path) -> None:
    run = run_at(tmp_path / "run", GOOD, GOOD, {})
    cut_after(run / "samples", step=2)
    assert sorted(consumed(run)) == [1, 2]
    assert sorted(path.name for path in (run / "samples").iterdir()) == [f"rank_0000{rank}.jsonl" for rank in range(3)]


@pytest.mark.parametrize(
    "torn", ['{"step":3,"sam', '{"step":3,"samples":[[0,[1,2,3]]]}', "\0\0\0\0", '{"step":3}\n', "7\n"]
)
def test_a_torn_last_line_is_dropped(tmp_path: Path, torn: str) -> None:
    """Also one that is whole but for its end: the next one would be appended to it."""
    run = tmp_path / "run"
    write(run, steps=range(1, 3))
    with (run / "samples" / "rank_00000.jsonl").open("a") as file:
        file.write(torn)
    assert sorted(consumed(run)) == [1, 2]
    write(run, steps=range(3, 5), resumed_step=2)
    assert recorded(run) == {step: [step, 100 + step] for step in range(1, 5)}


def test_a_damaged_line_is_seen_as_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_at(tmp_path / "run", GOOD)
    path = run / "samples" / "rank_00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff" + lines[1][1:] + lines[2])
    out, code = outcome(capsys, run)
    assert code == 1
    assert "wrong: 1 of the steps up to 3 are missing" in out
    cut_after(run / "samples", step=3)
    assert sorted(consumed(run)) == [1, 3]


def test_nothing_is_written_when_off(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with SampleRecord(config_at(run, samples=False), world=WORLD, resumed_step=0) as record:
        record.write(1, [(0, [1])])
    assert not run.exists()


def test_turned_off_a_run_still_drops_what_comes_again(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write(run, steps=range(1, 6))
    with SampleRecord(config_at(run, samples=False), world=WORLD, resumed_step=3):
        pass
    assert sorted(consumed(run)) == [1, 2, 3]


KILLED = """
import os, signal, sys
from pathlib import Path
from pipeline.audit import SampleRecord
from tests.unit.pipeline.test_audit import WORLD, config_at
record = SampleRecord(config_at(Path(sys.argv[1])), world=WORLD, resumed_step=0)
for step in range(1, 4):
    record.write(step, [(0, [step])])
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_survives_a_kill(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = subprocess.run([sys.executable, "-c", KILLED, str(run)], cwd=REPOSITORY, timeout=300, check=False)
    assert done.returncode == -signal.SIGKILL
    assert recorded(run) == {1: [1], 2: [2], 3: [3]}


def test_what_a_full_disk_refuses_comes_when_there_is_room(tmp_path: Path) -> None:
    run = tmp_path / "run"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with SampleRecord(config_at(run), world=WORLD, resumed_step=0) as record:
        record.write(1, [(0, [1])])
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
        try:
            record.write(2, [(0, [2])])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert recorded(run) == {1: [1]}
        record.write(3, [(0, [3])])
    assert recorded(run) == {1: [1], 2: [2], 3: [3]}
