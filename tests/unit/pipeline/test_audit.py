"""The audit of one run's record, and the comparison of two, on records that are written by hand."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.command_line import UserError
from pipeline import audit
from pipeline.data.sample_record import remove_after, samples_by_step
from tests.conftest import run_module
from tests.helpers.recorded import GOOD, Steps, recorded_run


def outcome(capsys: pytest.CaptureFixture[str], *runs: Path) -> tuple[str, int]:
    with pytest.raises(SystemExit) as ended:
        audit.main([str(run) for run in runs])
    assert isinstance(ended.value.code, int)
    return capsys.readouterr().out, ended.value.code


def test_a_good_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, code = outcome(capsys, recorded_run(tmp_path / "run", GOOD))
    assert code == 0
    assert out.splitlines() == [
        f"{tmp_path / 'run'}: 3 steps up to step 3, 12 samples, 2 epochs",
        "  epoch 0: 8 samples, 0 of them repeated",
        "  epoch 1: 4 samples, 0 of them repeated",
        "  no step is missing; no epoch repeats more samples than padding may (0)",
    ]


def test_missing_steps_and_samples_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = {2: GOOD[2], 4: [[1, [1, 2]]], 6: GOOD[3]}
    out, code = outcome(capsys, recorded_run(tmp_path / "run", steps))
    assert code == 1
    assert "wrong: 3 of the steps up to 6 are missing" in out
    assert "wrong: step 4 has 2 samples instead of 4" in out


@pytest.mark.parametrize(("num_canonical_nodes", "expected"), [(2, 1), (3, 0)])
def test_repeated_samples_are_wrong_beyond_padding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], num_canonical_nodes: int, expected: int
) -> None:
    steps: Steps = {1: [[0, [3, 1, 0, 2]]], 2: [[0, [3, 4, 1, 5]]], 3: [[1, [3, 4, 1, 5]]]}
    run = recorded_run(tmp_path / "run", steps, num_canonical_nodes=num_canonical_nodes)
    out, code = outcome(capsys, run)
    assert "epoch 0: 8 samples, 2 of them repeated" in out
    assert code == expected
    assert ("wrong: epoch 0 repeats 2 samples; at most 1 can be padding" in out) == bool(expected)


def test_replaced_windows_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, code = outcome(capsys, recorded_run(tmp_path / "run", {1: [[0, [3, [1, 8], 0, [2, 9]]]]}))
    assert code == 0
    assert "replaced by others: 2 windows of damaged shards" in out


def test_an_incomplete_last_step_is_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path / "run", {1: [[0, [3, 1]]], 2: [[0, [4, 5]]]}, {1: [[0, [0, 2]]]})
    out, code = outcome(capsys, run)
    assert code == 0
    assert "step 2 is ignored: not all ranks have written it" in out
    whole = recorded_run(tmp_path / "whole", {1: [[0, [3, 1, 2, 0]]], 2: [[0, [4, 5, 6, 7]]]})
    out, code = outcome(capsys, run, whole)
    assert (code, out) == (0, "the same samples in 1 common step\n")


def test_runs_with_equal_samples_on_other_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    halves = [{step: [[epoch, ids[half::2]]] for step, ((epoch, ids),) in GOOD.items()} for half in (0, 1)]
    out, code = outcome(capsys, recorded_run(tmp_path / "a", GOOD), recorded_run(tmp_path / "b", *halves))
    assert (code, out) == (0, "the same samples in 3 common steps\n")


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
    a, b = recorded_run(tmp_path / "a", GOOD), recorded_run(tmp_path / "b", {**GOOD, 2: other, 3: [[1, [0, 0, 0, 0]]]})
    out, code = outcome(capsys, a, b)
    assert code == 1
    assert out.splitlines() == [
        "different from step 2 on, after 1 equal step",
        f"  only {a} had {only_a}",
        f"  only {b} had {only_b}",
    ]


def test_steps_that_one_run_lacks_are_ignored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = recorded_run(tmp_path / "a", GOOD), recorded_run(tmp_path / "b", {2: GOOD[2], 9: GOOD[1]})
    assert outcome(capsys, a, b) == ("the same samples in 1 common step\n", 0)
    c = recorded_run(tmp_path / "c", {9: GOOD[1]})
    with pytest.raises(UserError, match="have no recorded step in common"):
        audit.main([str(a), str(c)])


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    unrecorded = recorded_run(tmp_path / "unrecorded")
    empty = recorded_run(tmp_path / "empty", {})
    for arguments, message in [
        ([unrecorded], "has no record of its samples (samples/rank_*.jsonl); a run keeps one with log.samples=true"),
        ([empty], "has no record of its samples"),
        ([tmp_path / "nothing"], "config.yaml cannot be read: No such file or directory; give a folder under runs/"),
    ]:
        done = run_module("pipeline.audit", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.startswith("pipeline.audit: error: ")
        assert done.stderr.count("\n") == 1
    three = run_module("pipeline.audit", unrecorded, unrecorded, unrecorded)
    assert three.returncode == 2
    assert "one run or two, not 3" in three.stderr


BAD_CONFIGS = [
    f"train: {{batch_tokens: {batch}}}\ndata: {{seq_len: {length}, num_canonical_nodes: {nodes}}}"
    for batch, length, nodes in [("x", 1, 1), (1, 0, 1), (1.5, 1, 1), ("1e999", 1, 1), (8, "true", 1), (8, 1, "[2]")]
]


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", GOOD)
    for content in ("- 1", "train: {}", "a: [", *BAD_CONFIGS):
        (run / "config.yaml").write_text(content)
        with pytest.raises(UserError, match="is not a run"):
            audit.main([str(run)])


def test_steps_before_an_incomplete_one_may_not_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path / "run", {1: GOOD[1], 2: GOOD[2], 7: [[1, [2, 6]]]})
    out, code = outcome(capsys, run)
    assert code == 1
    assert "step 7 is ignored" in out
    assert "wrong: 4 of the steps up to 6 are missing" in out


def test_a_damaged_line_counts_as_a_missing_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded_run(tmp_path / "run", GOOD)
    path = run / "samples" / "rank_00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\xff" + lines[1][1:] + lines[2])
    out, code = outcome(capsys, run)
    assert code == 1
    assert "wrong: 1 of the steps up to 3 are missing" in out
    remove_after(run / "samples", step=3)
    assert sorted(samples_by_step(run)) == [1, 3]


@pytest.mark.parametrize(
    "samples",
    ["7", "{}", "[7]", "[[0]]", "[[0, 7]]", "[[0, [[1]]]]", "[[0, [[1, 2, 3]]]]", "[[0, [null]]]", "[[0, [true]]]",
     "[[0, [1.0]]]", '[["0", [1]]]', "[[0, [[[1], 2]]]]", f"[[0, [{2**63}]]]", f"[[{10**400}, [1]]]", "[[0, [-2]]]",
     "[[0, [NaN]]]", "[" * 100_000],
)  # fmt: skip
def test_lines_of_other_shapes_count_as_missing(
    samples: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = recorded_run(tmp_path / "run", {1: GOOD[1], 3: GOOD[3]})
    path = run / "samples" / "rank_00000.jsonl"
    first, third = path.read_text().splitlines(keepends=True)
    path.write_text(f'{first}{{"step": 2, "samples": {samples}}}\n{third}')
    out, code = outcome(capsys, run)
    assert (code, "wrong: 1 of the steps up to 3 are missing" in out) == (1, True)


def _as_folder(path: Path) -> None:
    path.mkdir()


def _as_fifo(path: Path) -> None:
    os.mkfifo(path)


def _as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize(("make", "what"), [(_as_folder, "folder"), (_as_fifo, "FIFO"), (_as_device, "device")])
@pytest.mark.parametrize("name", ["samples/rank_00001.jsonl", "config.yaml"])
def test_what_is_no_file_is_named(make: Callable[[Path], None], what: str, name: str, tmp_path: Path) -> None:
    run = recorded_run(tmp_path / "run", GOOD)
    (run / name).unlink(missing_ok=True)
    make(run / name)
    with pytest.raises(UserError, match=rf"{name} cannot be read: it is a {what}"):
        audit.main([str(run)])
